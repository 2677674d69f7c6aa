// Package storage keeps Kubernetes objects in Shoal's shards: an implementation of
// k8s.io/apiserver/pkg/storage.Interface over consensus.Host, one instance per
// resource, and the RESTOptionsGetter through which upstream's REST storages and
// custom resources are given it.
//
// # Keys and shards
//
// Keys are the ones upstream builds, <prefix>/<resource path>/<namespace>/<name>. A
// namespaced object lives in its namespace's shard, everything else in the meta
// shard. Creating a Namespace records its shard in the same transaction.
//
// # Revisions
//
// A resourceVersion is a store.Revision. Revisions of one shard share their low
// bits, so each is unique over all shards, and a shard whose last revision lies in
// some tick assigns no further one in that tick (see merge.ClosedThrough).
//
// A read of one namespace asks its shard alone. A read over namespaces first makes
// every shard confirm its last revision, takes the highest of them, lets the shards
// that lag behind close up to it, and reads all of them exactly there: an idle
// cluster answers such a list without writing anything, and always with the same
// resourceVersion.
//
// A watch over namespaces holds an event back until every other shard has closed
// its revision, and asks for that only while an event waits. Its events therefore
// come in one order for all watchers, and a watch may be resumed from any event's
// revision on any peer.
//
// # Transactions
//
// Under a context made by WithTransaction, Create, GuaranteedUpdate and Delete are
// collected, and Commit proposes them as one transaction per shard.
package storage
