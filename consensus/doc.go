// Package consensus is the cluster's store: namespaces' objects in shards, each
// shard one raft group (dragonboat) replicated over a few peers, and every peer
// able to read, write and watch every shard.
//
// A Host is one peer's part in it. It runs the local replicas, proposes and reads
// through them, and reaches shards without a local replica through a peer that has
// one. Shard 0 is the meta shard: it holds cluster-scoped objects and, under
// /shoal/, which namespaces belong to which shard and which peers hold which
// shard's replicas. The other shards are data shards.
//
// What a shard does with a transaction is package store's; which replica change
// comes next is package shardmap's; both are pure. This package gives them disks,
// wires and clocks.
package consensus
