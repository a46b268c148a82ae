package local

// FaultPoints returns the names that Config.Fault is called with, in the order
// of a launch's life, so that a test can crash the server at each of them.
func FaultPoints() []string {
	return []string{
		"volume.formatted",
		"launch.folder", "launch.group", "launch.mounts", "launch.runtime", "launch.running", "launch.furnished", "launch.told",
		"kill.ended", "kill.groups", "remove.groups",
	}
}

// CaptureFaultPoints returns the names that Config.Fault is called with while
// volumes are cloned and captured, in this order. The first is passed only before
// the first volume of a state folder whose file system has no reflinks.
func CaptureFaultPoints() []string {
	return []string{"store.formatted", "capture.guarded", "capture.stopped", "capture.frozen", "capture.cloned", "capture.thawed", "clone.written"}
}
