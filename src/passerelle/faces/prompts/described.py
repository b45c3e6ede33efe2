"""The routes of prompts for the OpenAPI document."""

from __future__ import annotations

from passerelle.domain.principal import Scope
from passerelle.faces.admin.resource import Listed
from passerelle.faces.described import AFTER, ARCHIVED, LIMIT, Described
from passerelle.faces.prompts.bodies import (
    LabelBody,
    PromptAnswer,
    PromptBody,
    RenderAnswer,
    RenderBody,
    StudioAnswer,
    StudioBody,
    VersionAnswer,
    VersionBody,
)

_TAG = "Prompts"
_PATH = "/v1/prompts"
_ONE = f"{_PATH}/{{prompt_id}}"
_USE, _DO = Scope.INFERENCE, Scope.SERVICES
_ARCHIVED = {409: "The prompt is in the archive."}
_PROMPTS, _VERSIONS = Listed[PromptAnswer], Listed[VersionAnswer]

PROMPTS = (
    Described("POST", "/prompt", _TAG, "fillTemplate", "Fill a template and answer it", _USE, StudioAnswer, StudioBody),
    Described("GET", _PATH, _TAG, "listPrompts", "List prompts", _USE, _PROMPTS, parameters=(LIMIT, AFTER, ARCHIVED)),
    Described(
        "POST",
        _PATH,
        _TAG,
        "createPrompt",
        "Make a prompt with its first version",
        _DO,
        PromptAnswer,
        PromptBody,
        201,
        errors={409: "The name is in use."},
    ),
    Described("GET", _ONE, _TAG, "showPrompt", "Show a prompt and its labels", _USE, PromptAnswer),
    Described(
        "GET",
        f"{_ONE}/versions",
        _TAG,
        "listPromptVersions",
        "List the versions of a prompt",
        _USE,
        _VERSIONS,
        parameters=(LIMIT, AFTER),
    ),
    Described(
        "POST",
        f"{_ONE}/versions",
        _TAG,
        "addPromptVersion",
        "Make a new version of a prompt",
        _DO,
        VersionAnswer,
        VersionBody,
        201,
        errors=_ARCHIVED,
    ),
    Described(
        "GET",
        f"{_ONE}/versions/{{version}}",
        _TAG,
        "showPromptVersion",
        "Show a version, by its number, a label or latest",
        _USE,
        VersionAnswer,
    ),
    Described(
        "PUT",
        f"{_ONE}/labels/{{label}}",
        _TAG,
        "labelPrompt",
        "Point a label at a version",
        _DO,
        PromptAnswer,
        LabelBody,
        errors=_ARCHIVED,
    ),
    Described(
        "DELETE",
        f"{_ONE}/labels/{{label}}",
        _TAG,
        "unlabelPrompt",
        "Remove a label",
        _DO,
        PromptAnswer,
        errors={409: "It is the label that is always there, or the prompt is in the archive."},
    ),
    Described("POST", f"{_ONE}/archive", _TAG, "archivePrompt", "Take a prompt out of use", _DO, PromptAnswer),
    Described("POST", f"{_ONE}/restore", _TAG, "restorePrompt", "Take a prompt out of the archive", _DO, PromptAnswer),
    Described(
        "POST",
        f"{_ONE}/render",
        _TAG,
        "renderPrompt",
        "Show what a request with the prompt would send",
        _USE,
        RenderAnswer,
        RenderBody,
    ),
)
