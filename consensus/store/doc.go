// Package store is the versioned key-value state machine of one shard.
//
// It is pure: it uses no clock, chance, file, network or log. What a transaction
// needs of the outside (its stamp, its request ID, the moment for expiry) comes in
// with the transaction, so every replica that applies the same transactions in the
// same order holds the same state, byte for byte.
//
// Words: a Revision orders every change of every shard; a Transaction is applied
// whole or not at all; the history is the bounded record of past changes that
// exact-revision reads, continue tokens and watches are answered from; the floor
// is the revision from which on the history is complete.
package store
