"""The page behind a reset link: one field, no libraries, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:24rem;margin:4rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
input,button{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin:.25rem 0 1rem}
"""
_SCRIPT = """
const token = location.hash.slice(1), form = document.forms[0], said = document.getElementById('said');
history.replaceState(null, '', location.pathname);
form.addEventListener('submit', async (event) => {
  event.preventDefault();
  const body = JSON.stringify({token, password: form.elements.password.value});
  try {
    const headers = {'content-type': 'application/json'};
    const answer = await fetch(location.pathname, {method: 'POST', headers, body});
    const told = await answer.json();
    said.textContent = answer.ok ? told.message : told.error.message;
    if (answer.ok) form.hidden = true;
  } catch (error) {
    said.textContent = 'The server does not answer; try again.';
  }
});
"""


def _source(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
RESET_PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>A new password</title><style>{_STYLE}</style></head><body>
<h1>A new password</h1>
<form><label>New password, 8 characters at least
<input name="password" type="password" autocomplete="new-password" minlength="8" maxlength="128" required autofocus>
</label><button>Set it</button></form>
<p id="said" role="status"></p>
<script>{_SCRIPT}</script>
</body></html>
"""
