package consensus

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"shoal/consensus/store"
)

// The service shoal/store is gRPC over the peers' own connections: it brings
// multiplexing, deadlines and flow control. Its messages are CBOR envelopes;
// transactions, versions and events inside them have package store's encoding.

// maxMessage bounds one message: a transaction or a batch of events, which holds at
// least one event with its value before and after.
const maxMessage = 2*store.MaxValue + 1<<20

type wireCodec struct{ dec cbor.DecMode }

func newWireCodec() (wireCodec, error) {
	dec, err := cbor.DecOptions{
		MaxNestedLevels: 8, MaxArrayElements: 1 << 16, MaxMapPairs: 1 << 10,
	}.DecMode()
	if err != nil {
		return wireCodec{}, fmt.Errorf("cbor: %w", err)
	}
	return wireCodec{dec}, nil
}

func (wireCodec) Name() string { return "shoal" }

func (wireCodec) Marshal(v any) ([]byte, error) { return cbor.Marshal(v) }

func (c wireCodec) Unmarshal(b []byte, v any) error { return c.dec.Unmarshal(b, v) }

// verb is what a call asks for.
type verb uint8

const (
	verbPropose verb = iota + 1
	verbGet
	verbClose
	verbStatus
	verbMembers
	verbCopy
	verbClock
)

// call is every request: a unary one by its verb, a List or a Watch.
type call struct {
	Verb    verb           `cbor:"1,keyasint,omitempty"`
	Shard   uint64         `cbor:"2,keyasint"`
	Level   ReadLevel      `cbor:"3,keyasint,omitempty"`
	Key     string         `cbor:"4,keyasint,omitempty"`
	Command []byte         `cbor:"5,keyasint,omitempty"`
	List    *ListOptions   `cbor:"6,keyasint,omitempty"`
	Watch   *WatchOptions  `cbor:"7,keyasint,omitempty"`
	UpTo    store.Revision `cbor:"8,keyasint,omitempty"`
	// All asks verbStatus for the peer's other shards too.
	All bool `cbor:"9,keyasint,omitempty"`
}

// answer is every response; streams send several.
type answer struct {
	Failure *failure       `cbor:"1,keyasint,omitempty"`
	At      store.Revision `cbor:"2,keyasint,omitempty"`
	Result  []byte         `cbor:"3,keyasint,omitempty"`
	KVs     []byte         `cbor:"4,keyasint,omitempty"`
	Events  []byte         `cbor:"5,keyasint,omitempty"`
	More    bool           `cbor:"6,keyasint,omitempty"`
	Count   int64          `cbor:"7,keyasint,omitempty"`
	// Last marks the end of a List.
	Last    bool         `cbor:"8,keyasint,omitempty"`
	Leader  string       `cbor:"9,keyasint,omitempty"`
	Status  *ShardStatus `cbor:"10,keyasint,omitempty"`
	Members *membership  `cbor:"11,keyasint,omitempty"`
	Copy    *Copy        `cbor:"12,keyasint,omitempty"`
	// Whole is a List's.
	Whole store.Revision `cbor:"13,keyasint,omitempty"`
	Clock *clockReading  `cbor:"14,keyasint,omitempty"`
	// Statuses are those of the peer's replicas, for a call with All.
	Statuses []ShardStatus `cbor:"15,keyasint,omitempty"`
}

// failure carries an error to another peer.
type failure struct {
	Kind      string `cbor:"1,keyasint"`
	Text      string `cbor:"2,keyasint"`
	Uncertain bool   `cbor:"3,keyasint,omitempty"`
	// Assignments are what the answering peer knows of the shard asked for and of
	// the meta shard, for a peer that asked the wrong one.
	Assignments map[string][]byte `cbor:"4,keyasint,omitempty"`
}

const (
	kindTryAgain  = "try again"
	kindNoReplica = "no replica"
	kindOther     = "other"
)

// wireErrors are the errors that keep their identity between peers.
var wireErrors = map[string]error{
	"compacted": ErrCompacted,
	"future":    ErrFuture,
	"too large": ErrTooLarge,
	"clock":     ErrClockSkew,
	"slow":      ErrSlowWatcher,
	"malformed": store.ErrMalformed,
}

func wireFailure(err error) *failure {
	if err == nil {
		return nil
	}
	f := &failure{Kind: kindOther, Text: err.Error()}
	for kind, known := range wireErrors {
		if errors.Is(err, known) {
			f.Kind = kind
			return f
		}
	}
	var again *tryAgain
	switch {
	case errors.As(err, &again):
		f.Kind, f.Uncertain = kindTryAgain, again.uncertain
	case errors.Is(err, errNoReplica):
		f.Kind = kindNoReplica
	}
	return f
}

// remoteError is a failure that another peer reported.
type remoteError struct {
	kind error
	peer string
	text string
}

func (e *remoteError) Error() string { return fmt.Sprintf("peer %s: %s", e.peer, e.text) }
func (e *remoteError) Unwrap() error { return e.kind }

func (f *failure) asError(peer string) error {
	if f == nil {
		return nil
	}
	err := &remoteError{kind: wireErrors[f.Kind], peer: peer, text: f.Text}
	if err.kind != nil {
		return err
	}
	if f.Kind == kindNoReplica {
		err.kind = errNoReplica
	}
	// Unknown kinds, a newer peer's perhaps, are worth asking somebody else.
	return &tryAgain{cause: err, uncertain: f.Uncertain || f.Kind == kindOther}
}
