// Package secret keeps what connections are opened with.
//
// A Secret has a name and versions, of which the last counts. A version is
// stored, sealed by the Keyring, or is a reference: to where the value is, and
// is taken from each time that it is used. The Keyring's key is outside the
// state folder, so a copy of that folder opens nothing. No value is given back
// to who set it: a Value goes to the gateway only, and does not print itself.
package secret
