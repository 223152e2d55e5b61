"""Images by class: data sets, folders and the Arrow files that training reads."""
