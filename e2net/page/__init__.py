"""Reports as one HTML file each: what the pages of several programs share.

- ``render``: from a template to the file; what is shared lies in ``template/``
- ``tables``: tables of a page
- ``charts``: charts as inline SVG
- ``pictures``: pictures as data URIs
"""
