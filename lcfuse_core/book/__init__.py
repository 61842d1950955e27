"""What notebooks need: set-up of a chapter, parameters, reruns and figures. No module outside this room imports it."""
