package gateway

import (
	"net"
	"strconv"

	"isle/internal/policy"
)

// The ports at which connections are found inside, by their kind.
const (
	portPostgres = 5432
	portHTTP     = 80
)

// Ports are where a connection is found inside an airlock: at the port that
// clients of its kind expect, or at the real one.
func Ports(c policy.Connection) []int {
	switch c.Kind {
	case "postgres":
		return []int{portPostgres}
	case "http":
		return []int{portHTTP}
	}
	return []int{target(c)}
}

// target is the port of the real thing.
func target(c policy.Connection) int {
	if c.Address != "" {
		_, port, _ := net.SplitHostPort(c.Address) // checked as the policy was read
		n, _ := strconv.Atoi(port)
		return n
	}
	switch {
	case c.Port != 0:
		return c.Port
	case c.Kind == "postgres":
		return portPostgres
	}
	return portHTTP
}
