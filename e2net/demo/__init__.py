"""A page to try trained models on pictures and films: ``python -m e2net.demo``.

- ``settings``: what the program takes
- ``look``: models, and what they say of a picture; without Gradio
- ``examples``: pictures to begin with
- ``page``: the page itself, in Gradio; its style is in ``page.css``
"""
