package airlock

// FaultPoints returns the names that Config.Fault is called with, in the order
// of an airlock's life, so that a test can crash the server at each of them.
func FaultPoints() []string {
	return []string{
		"airlock.folder", "airlock.joined", "airlock.half", "airlock.pinned",
		"airlock.stopped", "airlock.unpinned", "airlock.removed",
	}
}
