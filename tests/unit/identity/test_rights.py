"""Nobody gives more than they have: over all ways to make or edit keys and users (promise 16, row D6)."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.harness.tenants import OPERATOR, make_key, make_organisation, make_user

from passerelle.domain.errors import Forbidden, NotFound, Unauthenticated
from passerelle.domain.principal import ROLE_SCOPES, Network, Principal, Role, Scope
from passerelle.identity.audit import Actor
from passerelle.identity.credentials import Credentials
from passerelle.identity.keys import KeyOptions, KeyStore
from passerelle.identity.projects import ProjectOptions, ProjectStore
from passerelle.identity.rights import Maker, Rights, excess
from passerelle.identity.token import parse
from passerelle.identity.users import User, UserOptions, UserStore
from passerelle.storage.engine import Database

TENANT_SCOPES = sorted(frozenset(Scope) - {Scope.ADMIN})
MODELS = ("a", "b", "c")
NETWORKS = tuple(map(ip_network, ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "192.0.2.0/24", "2001:db8::/32")))
ADDRESSES = tuple(map(ip_address, ("10.9.9.9", "10.1.9.9", "10.1.2.3", "192.0.2.7", "2001:db8::7", "8.8.8.8", "::1")))
NOW_MS = int(time.time() * 1000)
ENDS_MS = (None, NOW_MS + 3_600_000, NOW_MS + 7_200_000)

scope_sets = st.frozensets(st.sampled_from(TENANT_SCOPES))
name_sets = st.none() | st.frozensets(st.sampled_from(MODELS))
network_sets = st.none() | st.lists(st.sampled_from(NETWORKS), max_size=3).map(tuple)
rights = st.builds(
    Rights,
    scopes=st.frozensets(st.sampled_from(sorted(Scope))),
    project=st.sampled_from([None, "p", "q"]),
    models=name_sets,
    services=name_sets,
    networks=network_sets,
    expires_at_ms=st.sampled_from(ENDS_MS),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
)


def allows(names: frozenset[str] | None, name: str) -> bool:
    """Whether a bound lets a name pass."""
    return names is None or name in names


def comes(networks: tuple[Network, ...] | None, address: Any) -> bool:
    """Whether a bound lets an address pass."""
    return networks is None or any(address in network for network in networks)


def is_within(child: Rights, parent: Rights) -> bool:
    """Whether whatever the child may do the parent may do: asked case by case, not by comparing bounds."""
    scopes = Scope.ADMIN in parent.scopes or child.scopes <= parent.scopes
    names = all(
        allows(having, name) or not allows(giving, name)
        for having, giving in ((parent.models, child.models), (parent.services, child.services))
        for name in (*MODELS, "another")
    )
    places = all(comes(parent.networks, each) or not comes(child.networks, each) for each in ADDRESSES)
    return scopes and names and places and (child.expires_at_ms or inf) <= (parent.expires_at_ms or inf)


@given(rights, rights)
def test_what_is_not_too_much_is_within(parent: Rights, child: Rights) -> None:
    """The rule finds something too much wherever a child could do what its parent cannot."""
    if not excess(parent, child):
        assert is_within(child, parent)
        assert Scope.ADMIN in parent.scopes or parent.project in (None, child.project)


@given(rights)
def test_the_same_is_never_too_much(own: Rights) -> None:
    """Whoever has something may give just that."""
    assert excess(own, own) == []


async def _maker(database: Database, **options: Any) -> Maker:
    made = await make_key(database, "maker", **options)
    parsed = parse(made.token)
    assert parsed is not None
    found = await Credentials(database).look_up(parsed[0])
    assert found is not None
    return Maker(Actor("key", made.key.id, "maker"), found.principal)


async def test_what_is_too_much_is_named(database: Database) -> None:
    """The refusal says each thing that its maker does not have."""
    by = await _maker(database, scopes=frozenset({Scope.KEYS_WRITE}), models=frozenset({"a"}), networks=(NETWORKS[2],))
    with pytest.raises(Forbidden) as refused:
        await KeyStore(database, "default").create(
            by,
            KeyOptions(name="k", scopes=frozenset({Scope.AUDIT_READ}), models=None, networks=(NETWORKS[1],)),
        )
    assert refused.value.error_code == "insufficient_scope"
    for words in ("the scope 'audit:read'", "every model", "the network 10.1.0.0/16"):
        assert words in refused.value.message


async def test_a_new_key_is_as_its_maker_where_nothing_is_said(database: Database) -> None:
    """Bounds are inherited; so is the user, with whom the key ends."""
    ann = await make_user(database, "ann")
    bounds = {"models": frozenset({"a"}), "networks": (NETWORKS[0],), "expires_at_ms": ENDS_MS[1]}
    by = await _maker(database, user=ann.id, scopes=frozenset({Scope.KEYS_WRITE, Scope.INFERENCE}), **bounds)
    made = (await KeyStore(database, "default").create(by, KeyOptions(name="k"))).key
    assert (made.models, made.networks, made.expires_at_ms) == tuple(bounds.values())
    assert (made.user, made.project, made.scopes) == (ann.id, "default", {Scope.INFERENCE})


async def test_a_maker_that_was_revoked_a_moment_ago_makes_nothing(database: Database) -> None:
    """What a process still remembers of a key does not count: the transaction asks anew."""
    by = await _maker(database, scopes=frozenset({Scope.KEYS_WRITE, Scope.INFERENCE}))
    store = KeyStore(database, "default")
    await store.revoke(OPERATOR, by.actor.id)
    with pytest.raises(Unauthenticated):
        await store.create(by, KeyOptions(name="k"))


def _signed_on(user: User) -> Maker:
    """A person who signed on, as a process remembers them."""
    return Maker(
        Actor("user", user.id, user.name),
        Principal(
            f"session:{user.id}",
            user.name,
            project=user.project or "default",
            user=user.id,
            scopes=ROLE_SCOPES[user.role],
            role=user.role,
            confined=user.project is not None,
        ),
    )


async def test_what_is_remembered_of_a_person_does_not_count(database: Database) -> None:
    """Moved into a project, made a member, or locked out with their project a moment ago: the transaction asks anew."""
    boss, ben = await make_user(database, "boss", role=Role.ADMIN), await make_user(database, "ben")
    by, users, bounds = _signed_on(boss), UserStore(database, "default"), ProjectStore(database, "default")
    other = (await bounds.create(OPERATOR, ProjectOptions(name="other"))).id
    elsewhere = (await make_key(database, scopes=frozenset({Scope.INFERENCE}))).key
    await users.update(OPERATOR, boss.id, UserOptions(project=other))
    with pytest.raises(Forbidden, match="may not make others"):
        await bounds.create(by, ProjectOptions(name="third"))
    for attempt in (
        users.create(by, UserOptions(name="x", project=None)),
        KeyStore(database, "default").create(by, KeyOptions(name="k", user=None)),
    ):
        with pytest.raises(Forbidden):
            await attempt
    with pytest.raises(NotFound):
        await KeyStore(database, "default").revoke(by, elsewhere.id)
    await bounds.archive(OPERATOR, other)
    with pytest.raises(Unauthenticated):
        await bounds.restore(by, other)
    await bounds.restore(OPERATOR, other)
    await users.update(OPERATOR, boss.id, UserOptions(project=None, role=Role.MEMBER))
    with pytest.raises(Forbidden, match="of your own"):
        await KeyStore(database, "default").create(by, KeyOptions(name="k", user=ben.id))


async def test_a_narrow_key_does_not_get_the_secret_of_a_wide_one(database: Database) -> None:
    """Rotation is refused where the key may do more than who asks, even for a key of the same user."""
    ann = await make_user(database, "ann")
    wide = await make_key(database, user=ann.id, scopes=ROLE_SCOPES[Role.MEMBER])
    narrow = await _maker(database, user=ann.id, scopes=frozenset({Scope.KEYS_WRITE}))
    store = KeyStore(database, "default")
    with pytest.raises(Forbidden, match="inference"):
        await store.rotate(narrow, wide.key.id)
    with pytest.raises(Forbidden):
        await store.update(narrow, wide.key.id, KeyOptions(name="mine"))
    assert (await store.revoke(narrow, wide.key.id)).revoked_at_ms is not None  # ending one's own key is always right


async def test_members_reach_their_own_keys_only(database: Database) -> None:
    """A colleague's key is not there; neither can one be made for a colleague."""
    ann, ben = await make_user(database, "ann"), await make_user(database, "ben")
    by = await _maker(database, user=ann.id, scopes=ROLE_SCOPES[Role.MEMBER])
    other = await make_key(database, user=ben.id)
    store = KeyStore(database, "default")
    for attempt in (store.rotate(by, other.key.id), store.revoke(by, other.key.id)):
        with pytest.raises(NotFound):
            await attempt
    for user in (ben.id, None):
        with pytest.raises(Forbidden, match="of your own"):
            await store.create(by, KeyOptions(name="k", user=user))


async def test_a_key_of_nobody_makes_none_in_somebodys_name(database: Database) -> None:
    """Calls would count for them: it takes the right to manage the organisation."""
    ann = await make_user(database, "ann")
    store, scopes = KeyStore(database, "default"), frozenset({Scope.KEYS_WRITE, Scope.INFERENCE})
    with pytest.raises(Forbidden, match="of your own"):
        await store.create(await _maker(database, scopes=scopes), KeyOptions(name="k", user=ann.id))
    manager = await _maker(database, scopes=scopes | {Scope.ORGANISATION_WRITE})
    assert (await store.create(manager, KeyOptions(name="k", user=ann.id))).key.user == ann.id


async def test_nobody_edits_their_own_role(database: Database) -> None:
    """Not even downwards; the name is one's own."""
    ann = await make_user(database, "ann", role=Role.OWNER)
    by = await _maker(database, user=ann.id, scopes=ROLE_SCOPES[Role.OWNER])
    users = UserStore(database, "default")
    for changes in ({"role": Role.MEMBER}, {"disabled": True}, {"project": "default"}, {"email": "a@b.example"}):
        with pytest.raises(Forbidden, match="their own role"):
            await users.update(by, ann.id, UserOptions(**changes))
    assert (await users.update(by, ann.id, UserOptions(name="anna"))).name == "anna"


async def test_an_admin_touches_no_owner_and_makes_none(database: Database) -> None:
    """An owner may read the audit log, an admin may not: so the role is out of reach, and who has it."""
    owner, admin = await make_user(database, "o", role=Role.OWNER), await make_user(database, "a", role=Role.ADMIN)
    by = await _maker(database, user=admin.id, scopes=ROLE_SCOPES[Role.ADMIN])
    users = UserStore(database, "default")
    for role in (Role.OWNER, Role.AUDITOR):
        with pytest.raises(Forbidden, match="audit:read"):
            await users.create(by, UserOptions(name="x", role=role))
    with pytest.raises(Forbidden, match="audit:read"):
        await users.update(by, owner.id, UserOptions(disabled=True))
    assert (await users.create(by, UserOptions(name="x", role=Role.VIEWER))).role is Role.VIEWER


async def test_another_organisation_is_out_of_reach(database: Database) -> None:
    """Users and projects of another tenant are not there, and no key is made for them."""
    acme = await make_organisation(database, "acme")
    stranger = await make_user(database, "eve", organisation=acme.id)
    theirs = await make_key(database, organisation=acme.id)
    by = await _maker(database, scopes=frozenset(TENANT_SCOPES))
    store = KeyStore(database, "default")
    for options in (KeyOptions(name="k", user=stranger.id), KeyOptions(name="k", project=theirs.key.project)):
        with pytest.raises(NotFound):
            await store.create(by, options)
    with pytest.raises(NotFound):
        await store.rotate(by, theirs.key.id)
    with pytest.raises(NotFound):
        await UserStore(database, "default").update(by, stranger.id, UserOptions(role=Role.VIEWER))


async def test_who_belongs_to_a_project_gets_no_key_that_reaches_beyond_it(database: Database) -> None:
    """A key of nobody, or of a user of the whole organisation, would manage every project by the same scopes: neither
    made, nor changed, nor taken over by a rotation. Those of the project's own people are theirs."""
    boss = await make_user(database, "boss", role=Role.ADMIN)
    chief = await make_user(database, "chief", role=Role.ADMIN, project="default")
    robot = await make_user(database, "robot", kind="service", project="default")
    scopes = ROLE_SCOPES[Role.ADMIN]
    by, store = await _maker(database, user=chief.id, scopes=scopes), KeyStore(database, "default")
    for user in (None, boss.id):
        wide = await make_key(database, user=user, scopes=scopes)
        for attempt in (
            store.create(by, KeyOptions(name="k", user=user, scopes=scopes)),
            store.create(by, KeyOptions(name="k", user=user)),
            store.rotate(by, wide.key.id),
            store.update(by, wide.key.id, KeyOptions(name="mine")),
        ):
            with pytest.raises(Forbidden, match="belong to one project"):
                await attempt
    made = await store.create(by, KeyOptions(name="k", user=robot.id))
    assert (await store.rotate(by, made.key.id)).key.user == robot.id


async def test_who_belongs_to_a_project_does_not_widen_its_bounds(database: Database) -> None:
    """Models and services of the project were given to them: fewer are theirs to choose, others are not."""
    chief = await make_user(database, "chief", role=Role.ADMIN, project="default")
    by, store = await _maker(database, user=chief.id, scopes=ROLE_SCOPES[Role.ADMIN]), ProjectStore(database, "default")
    given = ProjectOptions(models=frozenset({"a", "b"}), services=frozenset({"s"}))
    await store.update(OPERATOR, "default", given)
    for wider in ({"models": None}, {"models": frozenset({"a", "c"})}, {"services": None}):
        with pytest.raises(Forbidden, match="more than you have"):
            await store.update(by, "default", ProjectOptions(**wider))
    after = await store.update(by, "default", ProjectOptions(name="renamed", models=frozenset({"a"})))
    assert (after.models, after.services) == ({"a"}, {"s"})
