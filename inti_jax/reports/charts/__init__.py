"""Draw the charts of pages with Bokeh."""
