"""Starting the pipeline: on this machine or on a cluster. In no image; knows no pipeline but the one it is handed."""
