"""Share a trained model on the Hugging Face Hub.

In: the folder of a run, or any folder with a pipeline.
Out: its model card, and one commit to a model repository or to a Space.
`checks` finds out what can go wrong. `card` writes the model card. `push` and the Spaces upload, and `retry` repeats.
"""
