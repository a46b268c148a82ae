package environment

// FaultPoints returns the names that Config.Fault is called with, in the order
// of a lifecycle, so that a test can crash the server at each of them.
func FaultPoints() []string {
	return []string{
		"up.begin", "up.recorded", "up.network", "up.prepared", "up.volume", "up.launching", "up.launched",
		"setup.done", "setup.recorded", "up.healthy", "up.concluding",
		"replace.begin", "replace.recorded", "replace.stopped",
		"fork.recorded", "fork.captured", "fork.copied", "fork.waking", "fork.restored", "fork.woken", "fork.on_fork", "fork.opened",
		"snapshot.captured",
		"ready.captured", "ready.kept", "warm.recorded", "warm.copied", "warm.withdrawing", "warm.withdrawn",
		"restore.recorded", "restore.copied", "restore.up", "restore.swapped", "restore.dropped",
		"switch.recorded", "switch.up", "switch.committed", "switch.taken", "switch.drained", "switch.frozen", "switch.thawed", "aside.removed",
		"handover.recorded", "handover.stopped", "handover.copied", "handover.resumed", "handover.saved",
		"exit.recorded", "exit.removed", "restart.recorded",
		"down.recorded", "down.stopped", "down.network", "down.removed", "down.volume", "down.forgotten",
		"spare.network", "spare.stocked",
		"expire.recorded", "volume.recorded", "volume.deleted",
		"reconcile.read", "reconcile.swept", "reconcile.adopted",
	}
}
