"""Nobody gives more than they have, in any order of makings and editings (promise 16, row D6).

Everybody acts: keys of people, of service accounts and of nobody, and people who signed on; some belong to one project.
What a process remembers of them may be older than the database: that must not help them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from tests.harness.tenants import OPERATOR, make_key, make_organisation, make_user
from tests.unit.identity.test_rights import ENDS_MS, is_within, name_sets, network_sets, scope_sets

from passerelle.domain.errors import Forbidden, PasserelleError
from passerelle.domain.principal import ROLE_SCOPES, Principal, Role, Scope
from passerelle.identity.accounts import Accounts
from passerelle.identity.audit import Actor
from passerelle.identity.credentials import Credentials
from passerelle.identity.keys import Key, KeyOptions, KeyStore, NewKey, all_keys
from passerelle.identity.options import SAME
from passerelle.identity.passwords import Passwords
from passerelle.identity.projects import Project, ProjectOptions, ProjectStore
from passerelle.identity.rights import Maker, Rights
from passerelle.identity.secrets import Secrets
from passerelle.identity.token import parse
from passerelle.identity.users import User, UserOptions, UserStore
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade

pytestmark = pytest.mark.slow

options = st.builds(
    KeyOptions,
    name=st.just("k"),
    scopes=st.just(SAME) | scope_sets,
    models=st.just(SAME) | name_sets,
    services=st.just(SAME) | name_sets,
    networks=st.just(SAME) | network_sets,
    expires_at_ms=st.sampled_from([SAME, *ENDS_MS]),
    weight=st.sampled_from([SAME, 0.5, 3.0]),
)
PLACES = st.sampled_from([SAME, None, "p", "q"])
steps = st.fixed_dictionaries(
    {
        "what": st.sampled_from(
            ["create", "create", "create", "edit", "edit", "rotate", "revoke", "user", "user", "role", "move", "bounds"]
        ),
        "maker": st.integers(0, 50),
        "remembered": st.booleans(),
        "target": st.integers(0, 50),
        "options": options,
        "owner": st.sampled_from(["own", "nobody", "somebody", "somebody"]),
        "place": PLACES,
        "kind": st.sampled_from(["person", "service"]),
        "role": st.sampled_from(list(Role)),
    }
)


class Realm:
    """One organisation with two projects, those who act in it, and who tries what.

    ``tokens`` are the keys that somebody of the history has, by id; ``people`` those who may sign on there.
    """

    def __init__(self, database: Database, organisation: str, projects: dict[str, str]) -> None:
        self.database = database
        self.organisation = organisation
        self.projects = projects
        self.store = KeyStore(database, organisation)
        self.users = UserStore(database, organisation)
        self.bounds = ProjectStore(database, organisation)
        self.accounts = Accounts(database, Passwords(), Secrets(database))
        self.tokens: dict[str, str] = {}
        self.people: list[str] = []
        self.targets: list[str] = []
        """Keys that are tried to be changed; whose secrets nobody of the history has are among them."""
        self.remembered: dict[str, Principal] = {}
        self.done: list[str] = []

    def join(self, made: NewKey) -> None:
        """Somebody of the history has a key."""
        self.tokens[made.key.id] = made.token
        self.targets.append(made.key.id)

    async def principal(self, who: str) -> Principal | None:
        """Returns who calls with a key or a session at this moment, None when that is not valid."""
        if who not in self.tokens:
            account = await self.accounts.get(who)
            try:
                return None if account is None else account.admit().principal()
            except Forbidden:
                return None
        parsed = parse(self.tokens[who])
        assert parsed is not None
        found = await Credentials(self.database).look_up(parsed[0])
        return None if found is None or found.revoked else found.principal

    async def rights(self, who: str, principal: Principal) -> Rights:
        """Returns what somebody really has, as the rules of the documentation say it."""
        if who not in self.tokens:
            project = principal.project if principal.confined else None
            return Rights(principal.scopes, project, confined=principal.confined)
        own = (await self.store.get(who)).rights
        return replace(own, scopes=principal.scopes, confined=principal.confined)

    async def attempt(self, step: dict[str, Any]) -> None:
        """Somebody tries something; what succeeds is held against what they have, whatever is remembered of them."""
        everybody = [*sorted(self.tokens), *self.people]
        who = step["maker"] if isinstance(step["maker"], str) else everybody[step["maker"] % len(everybody)]
        now = await self.principal(who)
        if now is not None:
            self.remembered.setdefault(who, now)
        by = self.remembered.get(who) if step["remembered"] else now
        if by is None:
            return
        had = None if now is None else await self.rights(who, now)
        actor = Actor("user" if who in self.people else "key", who, "somebody")
        try:
            touched = await self._do(Maker(actor, by), step)
        except PasserelleError:
            return
        assert had is not None, ("who had ended did", step)
        self.done.append(f"{'confined' if had.confined else 'free'} {step['what']}")
        if isinstance(touched, Key):
            assert is_within(touched.rights, had), (step, had, touched)
        if had.confined and not had.everywhere:
            await self._check_inside(touched, had, step)

    async def _check_inside(self, touched: Key | User | Project | None, had: Rights, step: dict[str, Any]) -> None:
        """What somebody of one project makes or changes belongs to it, and to those who belong to it."""
        if isinstance(touched, Key):
            assert touched.project == had.project, (step, touched)
            assert touched.user is not None, (step, touched)
            assert (await self.users.get(touched.user)).project == had.project, (step, touched)
        if isinstance(touched, User):
            assert touched.project == had.project, (step, touched)
        if isinstance(touched, Project):
            assert touched.id == had.project, (step, touched)

    async def _do(self, by: Maker, step: dict[str, Any]) -> Key | User | Project | None:
        target = self.targets[step["target"] % len(self.targets)]
        found = await self.users.page(limit=100)
        user = found[step["target"] % len(found)].id if found else None
        place = self.projects.get(step["place"], step["place"])
        match step["what"]:
            case "create":
                owner = {"own": SAME, "nobody": None, "somebody": user or SAME}[step["owner"]]
                made = await self.store.create(
                    by, replace(step["options"], project=SAME if place is None else place, user=owner)
                )
                self.join(made)
                return made.key
            case "edit":
                return await self.store.update(by, target, replace(step["options"], name=SAME))
            case "rotate":
                rotated = await self.store.rotate(by, target, overlap_s=60)
                self.tokens[target] = rotated.token
                return rotated.key
            case "revoke":
                await self.store.revoke(by, target)
            case "user":
                wanted = UserOptions(name=f"u{len(found)}", role=step["role"], project=place)
                born = await self.users.create(by, wanted, step["kind"])
                self.people.append(born.id)
                return born
            case "role":
                return await self.users.update(by, user or "nobody", UserOptions(role=step["role"]))
            case "move":
                return await self.users.update(by, user or "nobody", UserOptions(project=place))
            case "bounds":
                bounded = ProjectOptions(models=step["options"].models)
                return await self.bounds.update(by, place if isinstance(place, str) else "none", bounded)
        return None


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for examples that are synchronous."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def opened(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Database]:
    """A database for all examples, each of which has an organisation of its own."""
    found = open_database("sqlite", tmp_path)
    # What a loss of power would do is not asked here, and thousands of commits would wait for the disk.
    event.listen(found.engine.sync_engine, "connect", lambda connection, _: _be_quick(connection))
    loop.run_until_complete(upgrade(found))
    yield found
    loop.run_until_complete(found.aclose())


def _be_quick(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=OFF")
    cursor.close()


async def _realm(database: Database, name: str) -> Realm:
    organisation = (await make_organisation(database, name)).id
    store = ProjectStore(database, organisation)
    projects = {each: (await store.create(OPERATOR, ProjectOptions(name=each))).id for each in "pq"}
    return Realm(database, organisation, projects)


def test_no_sequence_of_makings_and_editings_widens_anything(opened: Database, loop: asyncio.AbstractEventLoop) -> None:
    """From one key of an organisation, whoever makes, edits, rotates and appoints in any order: each success gave at
    most what its maker had, and in the end nothing may do what the first key could not."""
    done: list[str] = []
    count = iter(range(1000))

    @settings(max_examples=20, deadline=None, database=None, phases=[Phase.generate])
    @given(
        scope_sets.map(lambda scopes: scopes | {Scope.KEYS_WRITE}),
        name_sets,
        network_sets,
        st.sampled_from(ENDS_MS),
        st.lists(steps, min_size=5, max_size=25),
    )
    def property_holds(scopes: Any, models: Any, networks: Any, end_ms: Any, tried: list[dict[str, Any]]) -> None:
        bounds = {"scopes": scopes, "models": models, "networks": networks, "expires_at_ms": end_ms}
        done.extend(loop.run_until_complete(_from_one_key(opened, f"o{next(count)}", bounds, tried)))

    property_holds()
    assert done, "nothing was allowed: nothing was tested"


async def _from_one_key(
    database: Database, name: str, bounds: dict[str, Any], tried: list[dict[str, Any]]
) -> list[str]:
    realm = await _realm(database, name)
    root = await make_key(database, organisation=realm.organisation, project=realm.projects["p"], **bounds)
    realm.join(root)
    first = root.key.rights
    for step in tried:
        await realm.attempt(step)
    for key in await all_keys(database, realm.organisation, ended=False):
        assert is_within(key.rights, first), key
    for user in await realm.users.page(limit=100):
        assert ROLE_SCOPES[user.role] <= first.scopes
    return realm.done


def test_who_belongs_to_a_project_never_gets_out_of_it(opened: Database, loop: asyncio.AbstractEventLoop) -> None:
    """An owner, admin or member of one project signs on, has a key, and a service account of the project has one:
    whatever they and all whom they make do, every key and user of theirs stays in it, and nobody else's changes."""
    count = iter(range(1000))

    @settings(max_examples=20, deadline=None, database=None, phases=[Phase.generate])
    @given(st.sampled_from([Role.OWNER, Role.ADMIN, Role.MEMBER]), name_sets, st.lists(steps, min_size=8, max_size=20))
    def property_holds(role: Role, models: Any, tried: list[dict[str, Any]]) -> None:
        loop.run_until_complete(_from_one_project(opened, f"c{next(count)}", role, models, tried))

    property_holds()


async def _from_one_project(
    database: Database, name: str, role: Role, models: Any, tried: list[dict[str, Any]]
) -> None:
    realm = await _realm(database, name)
    inside, organisation = realm.projects["p"], realm.organisation
    await realm.bounds.update(OPERATOR, inside, ProjectOptions(models=models))
    chief = await make_user(database, "chief", organisation=organisation, role=role, project=inside)
    robot = await make_user(database, "robot", organisation=organisation, role=role, project=inside, kind="service")
    realm.people.append(chief.id)
    for user in (chief.id, robot.id):
        scopes = ROLE_SCOPES[role]
        realm.join(await make_key(database, organisation=organisation, project=inside, user=user, scopes=scopes))
    others = await _others(realm)
    if role is not Role.MEMBER:
        await _what_is_allowed(realm)
    for step in tried:
        await realm.attempt(step)
    for key in await all_keys(database, organisation, ended=False):
        if key.id in others:
            assert key == others[key.id]
        else:
            assert key.project == inside
            assert key.user is not None
            assert (await realm.users.get(key.user)).project == inside
    for user in await realm.users.page(limit=100):
        assert user == others.get(user.id, user)
        assert user.id in others or user.project == inside
    assert (await realm.bounds.get(realm.projects["q"])).models is None
    within = (await realm.bounds.get(inside)).models
    assert models is None or (within is not None and within <= models)
    assert not any(each.startswith("free") for each in realm.done)


async def _what_is_allowed(realm: Realm) -> None:
    """The first in the realm, who administer its project, do everything that is theirs to do: each succeeds, so what is
    tried after it begins in a realm where something has grown."""
    chief, made = realm.people[0], sorted(realm.tokens)
    plain: dict[str, Any] = {"maker": chief, "remembered": False, "target": 0, "owner": "own", "place": SAME}
    plain |= {"options": KeyOptions(name="k"), "kind": "service", "role": Role.VIEWER}
    wishes: list[dict[str, Any]] = [
        {"what": "create"},
        {"what": "edit", "maker": made[0], "options": KeyOptions(weight=0.5)},
        {"what": "rotate", "maker": made[1]},
        {"what": "user"},
        {"what": "role", "target": 5, "role": Role.MEMBER},
        {"what": "create", "owner": "somebody", "target": 5},
        {"what": "bounds", "place": "p"},
    ]
    for wish in wishes:
        await realm.attempt(plain | wish)
    assert realm.done == [f"confined {wish['what']}" for wish in wishes]


async def _others(realm: Realm) -> dict[str, Key | User]:
    """Makes those who are not theirs, whose keys are tried too: of nobody in the same project, of a service account and
    an owner of the whole organisation, and of somebody of the other project. Returns them by id."""
    database, organisation = realm.database, realm.organisation
    scopes = ROLE_SCOPES[Role.ADMIN]
    boss = await make_user(database, "boss", organisation=organisation, role=Role.OWNER)
    tool = await make_user(database, "tool", organisation=organisation, role=Role.ADMIN, kind="service")
    other = realm.projects["q"]
    stranger = await make_user(database, "stranger", organisation=organisation, role=Role.ADMIN, project=other)
    found: dict[str, Key | User] = {user.id: user for user in (boss, tool, stranger)}
    for user, project in ((None, "p"), (boss.id, "p"), (tool.id, "p"), (stranger.id, "q"), (None, "q")):
        key = await make_key(
            database, organisation=organisation, project=realm.projects[project], user=user, scopes=scopes
        )
        found[key.key.id] = key.key
        realm.targets.append(key.key.id)
    return found
