// Package api serves the Kubernetes API on a peer: upstream's handlers, REST storages, defaulting, validation and
// admission, over this project's own storage.
//
// The server is a chain of two upstream servers. The first holds the built-in groups, the second
// (apiextensions-apiserver) the custom resources; a request which the first does not know falls through to the second.
// Discovery is one shared document and OpenAPI is merged on request. Nothing here listens: [Server.Handler] is served by
// the peer's one port, and the process itself talks to the same handler through [Server.Loopback], without a socket.
//
// What is deliberately absent: etcd, the watch cache (the store's replica is the cache), the aggregation layer, API
// priority and fairness, and everything upstream that writes on a timer (identity leases).
package api
