"""Who looks at the dashboard, what they may do, and from where it can be reached.

Somebody who logged in is known by their address. Where nobody has to log in, a visitor is a browser, told apart by a
random cookie: whoever deletes it counts as another one, so only the limits for all visitors together are hard there.
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
"""Who may start, stop, delete and upload: addresses, `@domain` for all of a domain, `*` for all who log in."""

COOKIE = "smallalign_visitor"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")
NOT_HERE = User("nobody", Role.NOBODY)


def login_asked() -> bool:
    """Whether people have to log in: by Streamlit's [auth], or a proxy that does it for us."""
    return bool(_compat.login_section()) or bool(st.get_option("server.trustedUserHeaders"))


def visitor() -> User:
    """Whoever looks at the page that is being drawn in this thread; outside of a page somebody who may only look."""
    visit = _compat.session()
    if visit is None:
        return User("server", Role.VIEWER)
    if login_asked():
        return of_claims(st.user.to_dict())
    return of_browser(st.context.cookies.get(COOKIE), visit)


def of_browser(token: object, session: str) -> User:
    """A browser where nobody has to log in; the cookie's digest names it, so that the name opens nothing."""
    known = token if isinstance(token, str) and _TOKEN.fullmatch(token) else session
    return User("browser " + hashlib.sha256(known.encode()).hexdigest()[:12])


def of_claims(claims: Mapping[str, Any]) -> User:
    """Who an identity provider's claims speak of. An address that it did not verify gives no rights."""
    by_proxy = not _compat.login_section()
    if not (by_proxy or claims.get("is_logged_in") is True):
        return NOT_HERE
    # Not `preferred_username`: people may choose that themselves, somebody else's address too.
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
    """Who sends an HTTP request, which no page sees: by the cookie that Streamlit signed at the login."""
    if not login_asked():
        return of_browser(cookies.get(COOKIE), "no cookie")
    trusted = st.get_option("server.trustedUserHeaders")
    by_proxy = {key: headers.get(name) for name, key in trusted.items()} if isinstance(trusted, dict) else {}
    return of_claims({**_compat.claims_of_cookies(cookies), **by_proxy})


def gate() -> None:
    """Where people have to log in: the door for those who did not, their name and the way out for those who did."""
    if not login_asked():
        return
    who, ours = visitor(), bool(_compat.login_section())
    if who.role is not Role.NOBODY:
        with st.sidebar:
            st.text(f"{st.user.get('name') or who.name} · {who.role}")  # no Markdown: the name is theirs to choose
            if ours:
                st.button("Log out", icon=":material/logout:", type="tertiary", on_click=st.logout)
        return
    st.title("SmallAlign")
    st.write("This dashboard trains and compares image classifiers. Log in to see it.")
    if ours:
        st.button("Log in", type="primary", icon=":material/login:", on_click=st.login)
    else:
        st.info("The proxy in front of this dashboard logs people in, and named nobody. Open the proxy's address.")
    st.stop()


# --- from where it can be reached -------------------------------------------------------------------------------------


def is_loopback(name: str) -> bool:
    """Whether an address or host name means this machine and nobody else."""
    if name == "localhost" or name.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def allowed_hosts() -> tuple[str, ...]:
    """The names, besides the loopback ones, by which visitors may call this server: Streamlit's server.allowedHosts."""
    listed = (str(host).strip().lower().strip("[]").rstrip(".") for host in st.get_option("server.allowedHosts"))
    return tuple(host for host in listed if host and not is_loopback(host))


def check_exposure() -> None:
    """Refuse a server that others can reach while nobody has to log in.

    Raises:
        Refused: it listens beyond this machine, or answers to a name that is not this machine's, without a login.
    """
    address, hosts = str(st.get_option("server.address") or "0.0.0.0"), allowed_hosts()
    do = (
        "add [auth] to .streamlit/secrets.toml (see Trust in the README), or let it listen on 127.0.0.1 and reach it "
        "through an SSH tunnel"
    )
    if "*" in hosts:
        raise Refused("server.allowedHosts may not be *", given="*", do="list the names by which visitors call it")
    if bool(_compat.login_section()) or (login_asked() and is_loopback(address)):
        return
    if not is_loopback(address):
        what = "others could reach this dashboard, and nobody would have to log in"
        if login_asked():  # whoever reaches the port itself could write the proxy's headers
            what = "others could reach this dashboard past the proxy that logs people in"
        raise Refused(what, given=f"server.address {address}", do=do)
    if hosts:
        what = "this dashboard would answer to the name of another machine, and nobody would have to log in"
        raise Refused(what, given=f"server.allowedHosts {', '.join(hosts)}", do=do)


def prepare(store: Path) -> None:
    """What must hold before the first visitor; ends the process with exit code 2 and a sentence where it does not."""
    try:
        check_exposure()
        most = limits.current()
        check_root(store)
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    _compat.set_upload_limit(most.upload_mb)  # our limit is the one place for it
    if login_asked():  # visitors are not the machine's owner then: no folder that was not allowed
        os.environ.setdefault(limits.ROOTS, "")
    limits.require_allowed(store)
