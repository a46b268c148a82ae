// Package httpdoor speaks HTTP for the gateway.
//
// A client inside says http://NAME/, in HTTP/1.1 or HTTP/2, without TLS and
// without a credential. The Protocol reads each request strictly, decides it (its
// method says whether it is http:read or http:write, and rules speak of its
// method, path, host and headers), and makes a request of its own to the real
// thing out of it: over TLS that is verified, with the credential in it. Bodies
// pass both ways as they come, and so do trailers, upgrades to WebSocket, and
// streams of events. Where the connection masks, responses are JSON, and are
// rewritten while they pass.
//
// A refusal is an answer of the gateway's own: a problem (RFC 9457) whose type
// begins with urn:isle:problem:. A request that is held waits; its approval is
// bound to its method, path, query, header and whole body.
//
// The same serves egress that is inspected: there the client speaks TLS with a
// certificate of an authority that only its own environment trusts.
package httpdoor
