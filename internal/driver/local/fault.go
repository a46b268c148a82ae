package local

// FaultPoints returns the names that Config.Fault is called with, in the order
// of a launch's life, so that a test can crash the server at each of them.
func FaultPoints() []string {
	return []string{
		"volume.formatted",
		"launch.folder", "launch.group", "launch.mounts", "launch.runtime", "launch.running", "launch.told",
		"kill.ended", "kill.groups", "remove.groups",
	}
}
