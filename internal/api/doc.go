// Package api is the edge where people and programs speak to the server.
//
// New returns a Handler that serves isle.v1 over Connect: gRPC, or plain JSON
// over HTTP, on a unix socket. Each connection has an Actor, proven by the
// kernel (SO_PEERCRED); each call passes one guard that asks the Policy before
// the handler sees a message; each error crosses the wire once, as a code, a
// message and a hint. Client is the other side: it dials the socket and gives
// the same errors back.
//
// Handlers translate and bound. What they do is done by the rooms behind the
// interfaces that Config names.
package api
