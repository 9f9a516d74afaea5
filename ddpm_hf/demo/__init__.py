"""Try a model in the browser.

In: a pipeline.
Out: a page to sample, denoise, interpolate and inpaint with it.
`model` computes, without an interface, and `first` what the page opens with. `page` and its `parts` use Gradio.
"""
