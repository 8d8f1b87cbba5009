"""Users of the dashboard, their roles, and the network exposure of the server.

A user who logged in is identified by email address. Where no login is required, a user is a browser, identified by a
random cookie: a deleted cookie makes a new user, so only the limits for all users together are hard there.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.datastructures import Headers

from pages.ui import _compat
from smallalign_core.errors import Refused
from smallalign_core.runs.store import check_root
from smallalign_core.service.users import Role, User
from smallalign_core.system import limits

RUNNERS = "SMALLALIGN_RUNNERS"
"""Users who may start, stop, delete and upload: addresses, `@domain` for a domain, `*` for all logged-in users."""

COOKIE = "smallalign_visitor"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")
NOT_HERE = User("nobody", Role.NOBODY)


def login_required() -> bool:
    """Whether a login is required: by Streamlit's [auth], or by a proxy."""
    return bool(_compat.login_section()) or bool(st.get_option("server.trustedUserHeaders"))


def current_user() -> User:
    """The user of the page drawn in this thread; outside of a page one with read access only."""
    visit = _compat.session()
    if visit is None:
        return User("server", Role.VIEWER)
    if login_required():
        return of_claims(st.user.to_dict())
    return of_browser(st.context.cookies.get(COOKIE), visit)


def of_browser(token: object, session: str) -> User:
    """A browser where no login is required, named by the digest of its cookie, so that the name grants nothing."""
    known = token if isinstance(token, str) and _TOKEN.fullmatch(token) else session
    name = "browser " + hashlib.sha256(known.encode()).hexdigest()[:12]
    # `check_exposure` refuses a server without login that others could reach; this must hold even if that was left out.
    alone = is_loopback(str(st.get_option("server.address") or "0.0.0.0")) and not allowed_hosts()
    return User(name, Role.LOCAL if alone else Role.RUNNER)


def of_claims(claims: Mapping[str, Any]) -> User:
    """The user of an identity provider's claims. An unverified address has no rights."""
    by_proxy = not _compat.login_section()
    if not (by_proxy or claims.get("is_logged_in") is True):
        return NOT_HERE
    # Not `preferred_username`: users may set that to any value, including another user's address.
    named = [str(claims[key]) for key in ("email", "sub") if claims.get(key)]
    if not named:
        return NOT_HERE
    name = " ".join(named[0].split())[:200].lower()
    verified = claims.get("email_verified") not in (False, "false")
    return User(name, Role.RUNNER if verified and _is_runner(name) else Role.VIEWER)


def _is_runner(name: str) -> bool:
    listed = {one.strip().lower() for one in os.environ.get(RUNNERS, "").split(",")}
    domain = "@" + name.rpartition("@")[2] if "@" in name else None
    return bool({"*", name, domain} & (listed - {""}))


def of_request(headers: Headers, cookies: Mapping[str, str]) -> User:
    """The user of an HTTP request without a page: by the cookie that Streamlit signed at login."""
    if not login_required():
        return of_browser(cookies.get(COOKIE), "no cookie")
    trusted = st.get_option("server.trustedUserHeaders")
    by_proxy = {key: headers.get(name) for name, key in trusted.items()} if isinstance(trusted, dict) else {}
    return of_claims({**_compat.claims_of_cookies(cookies), **by_proxy})


def gate() -> None:
    """Where a login is required: the login page, or the user's name and the logout button."""
    if not login_required():
        return
    user, ours = current_user(), bool(_compat.login_section())
    if user.role is not Role.NOBODY:
        with st.sidebar:
            st.text(f"{st.user.get('name') or user.name} · {user.role}")  # no Markdown: users choose their names
            if ours:
                st.button("Log out", icon=":material/logout:", type="tertiary", on_click=st.logout)
        return
    st.title("SmallAlign")
    st.write("This dashboard trains and compares image classifiers. Log in to continue.")
    if ours:
        st.button("Log in", type="primary", icon=":material/login:", on_click=st.login)
    else:
        st.info("Not logged in: the request has no user headers of the proxy. Open the dashboard at the proxy's URL.")
    st.stop()


# --- from where it can be reached -------------------------------------------------------------------------------------


def is_loopback(name: str) -> bool:
    """Whether an address or host name refers to this machine only."""
    if name == "localhost" or name.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def allowed_hosts() -> tuple[str, ...]:
    """Host names, besides the loopback ones, under which this server is reachable: Streamlit's server.allowedHosts."""
    listed = (str(host).strip().lower().strip("[]").rstrip(".") for host in st.get_option("server.allowedHosts"))
    return tuple(host for host in listed if host and not is_loopback(host))


def check_exposure() -> None:
    """Refuse a server that is reachable from other machines without a login.

    Raises:
        Refused: it listens beyond this machine, or accepts another machine's name, without a login.
    """
    address, hosts = str(st.get_option("server.address") or "0.0.0.0"), allowed_hosts()
    do = "add [auth] to .streamlit/secrets.toml (docs/how-to/serve-others.md), or bind to 127.0.0.1 and use a tunnel"
    if "*" in hosts:
        raise Refused("server.allowedHosts may not be *", given="*", do="list the host names of this server")
    if bool(_compat.login_section()) or (login_required() and is_loopback(address)):
        return
    if not is_loopback(address):
        what = "this dashboard would be reachable from other machines without a login"
        if login_required():  # a client with access to the port itself could forge the proxy's headers
            what = "this dashboard would be reachable from other machines without passing the login proxy"
        raise Refused(what, given=f"server.address {address}", do=do)
    if hosts:
        what = "this dashboard would accept the host name of another machine without a login"
        raise Refused(what, given=f"server.allowedHosts {', '.join(hosts)}", do=do)


def prepare(store: Path) -> None:
    """Checks before the first session; exits with code 2 and a message where one fails."""
    try:
        check_exposure()
        most = limits.current()
        check_root(store)
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    _compat.set_upload_limit(most.upload_mb)  # our limit is the one place for it
    _compat.count_announced()
    if login_required():  # users are not the machine's owner then: allowed folders only
        os.environ.setdefault(limits.ROOTS, "")
    limits.require_allowed(store)
