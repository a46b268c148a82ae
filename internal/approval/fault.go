package approval

// FaultPoints returns the names that Config.Fault is called with, in the order in
// which one use of an approval is spent.
func FaultPoints() []string { return []string{"approval.spending", "approval.spent"} }
