package store

import (
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// Limits bounds the record of past changes. It is part of the state machine:
// replicas with different limits keep the same keys but answer differently for old
// revisions.
type Limits struct {
	// Bytes of superseded values with their keys. Default 64 MiB.
	Bytes int64
	// Age in revision time. Default 10 minutes.
	Age time.Duration
	// Requests is how many request IDs are remembered. Default 16,384.
	Requests int
}

// WithDefaults fills zero fields.
func (l Limits) WithDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 64 << 20
	}
	if l.Age == 0 {
		l.Age = 10 * time.Minute
	}
	if l.Requests == 0 {
		l.Requests = 16_384
	}
	return l
}

type state struct {
	last Revision
	keys *iradix.Tree[*KV]
}
