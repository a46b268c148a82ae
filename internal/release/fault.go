package release

// FaultPoints returns the names that Config.Fault is called with, in the order of
// a release that is made and removed, and of a promotion.
func FaultPoints() []string {
	return []string{"release.written", "release.renamed", "release.recorded", "release.forgotten", "promote.checked", "promote.recorded", "rollback.checked", "rollback.recorded"}
}
