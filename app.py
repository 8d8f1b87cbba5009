"""SmallAlign's dashboard as an ASGI application: `streamlit run app.py`."""

import streamlit as st

from pages.ui.app.context import exported, store
from pages.ui.app.server import routes
from pages.ui.app.supervisor import lifespan, on_script_error
from pages.ui.security import auth
from pages.ui.security.middleware import guard, middleware

auth.prepare(store().root)
guard()

app = st.App(
    "pages/frame.py",
    lifespan=lifespan,
    routes=routes(exported),
    middleware=middleware(auth.allowed_hosts()),
    on_script_error=on_script_error,
)
