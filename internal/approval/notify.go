package approval

// What a Notice tells.
const (
	Asked   = "asked"       // something waits for a decision
	Decided = "decided"     // it is approved or denied
	Broken  = "break-glass" // access was taken at once
)

// A Notice is what people elsewhere are to hear.
type Notice struct {
	What    string
	Request Request
}
