"""SmallAlign's dashboard as an ASGI application: `streamlit run app.py`."""

import streamlit as st

from pages.ui.backstage import exported
from pages.ui.server import middleware, routes
from pages.ui.supervisor import lifespan, on_script_error

app = st.App(
    "pages/frame.py",
    lifespan=lifespan,
    routes=routes(exported),
    middleware=middleware(),
    on_script_error=on_script_error,
)
