"""SmallAlign's dashboard as an ASGI application: `streamlit run app.py`."""

import streamlit as st

from pages.ui import access
from pages.ui.backstage import exported, store
from pages.ui.server import routes
from pages.ui.supervisor import lifespan, on_script_error
from pages.ui.wall import guard, middleware

access.prepare(store().root)
guard()

app = st.App(
    "pages/frame.py",
    lifespan=lifespan,
    routes=routes(exported),
    middleware=middleware(access.allowed_hosts()),
    on_script_error=on_script_error,
)
