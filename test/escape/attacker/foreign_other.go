//go:build !amd64

package main

// int80 is of one architecture only.
func int80() int { return -1 }
