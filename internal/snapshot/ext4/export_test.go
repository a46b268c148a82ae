package ext4

// SetMemory bounds what the names of a walk take, in bytes.
func (m *Image) SetMemory(n int64) { m.memory = n }
