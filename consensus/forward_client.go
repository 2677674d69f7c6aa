package consensus

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// answerSlack is how much longer a caller waits than the answering peer tries.
const answerSlack = 500 * time.Millisecond

// conn is the connection to a peer, made on first use. It is authenticated and
// encrypted by Config.Dial; gRPC need not do so again.
func (r *routes) conn(peer string) (*grpc.ClientConn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	if conn, ok := r.conns[peer]; ok {
		return conn, nil
	}
	codec, err := newWireCodec()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+peer,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return r.cfg.Dial(ctx, peer, ServiceStore)
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec),
			grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", peer, err)
	}
	r.conns[peer] = conn
	return conn, nil
}

// connected waits until the peer's connection stands, so that a call that fails
// before is known not to have been sent.
func (r *routes) connected(ctx context.Context, peer string) (*grpc.ClientConn, error) {
	conn, err := r.conn(peer)
	if err != nil {
		return nil, err
	}
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return conn, nil
		case connectivity.Idle:
			conn.Connect()
		case connectivity.TransientFailure, connectivity.Shutdown:
			return nil, &tryAgain{cause: fmt.Errorf("peer %s cannot be reached", peer)}
		}
		if !conn.WaitForStateChange(ctx, state) {
			return nil, &tryAgain{cause: fmt.Errorf("peer %s: %w", peer, ctx.Err())}
		}
	}
}

// Lost tells that a peer is believed dead: requests and watches that wait for its
// answer go elsewhere now. A machine that loses its power says no word, and the
// connections to it would stand for some twenty seconds.
func (h *Host) Lost(peer string) { h.routes.lose(peer) }

// ask makes one unary call. Errors are those the other peer reported, or tryAgain.
func (h *Host) ask(ctx context.Context, peer string, c call, patience time.Duration) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience+answerSlack)
	defer cancel()
	conn, err := h.routes.connected(ctx, peer)
	if err != nil {
		return nil, err
	}
	var a answer
	if err := conn.Invoke(ctx, methodCall, &c, &a); err != nil {
		return nil, &tryAgain{cause: fmt.Errorf("peer %s: %w", peer, err), uncertain: c.Verb == verbPropose}
	}
	return &a, h.digest(peer, c.Shard, &a)
}

// digest takes an answer's hints and returns its failure.
func (h *Host) digest(peer string, shard uint64, a *answer) error {
	h.routes.hint(shard, a.Leader)
	if a.Failure == nil {
		return nil
	}
	for key, value := range a.Failure.Assignments {
		if known, err := shardmap.Decode(key, value); err == nil {
			h.routes.suggest(known)
		}
	}
	return a.Failure.asError(peer)
}

func (h *Host) proposeAt(ctx context.Context, peer string, shard uint64, cmd []byte) (store.Result, error) {
	a, err := h.ask(ctx, peer, call{Verb: verbPropose, Shard: shard, Command: cmd}, writeAttempt)
	if err != nil {
		return store.Result{}, err
	}
	return store.DecodeResult(a.Result)
}

func (h *Host) getAt(ctx context.Context, peer string, shard uint64, key string, level ReadLevel) (kv store.KV, found bool, at store.Revision, err error) {
	a, err := h.ask(ctx, peer, call{Verb: verbGet, Shard: shard, Key: key, Level: level}, readAttempt)
	if err != nil || len(a.KVs) == 0 {
		if err == nil {
			at = a.At
		}
		return kv, false, at, err
	}
	kvs, err := store.DecodeKVs(a.KVs)
	if err != nil || len(kvs) != 1 {
		return kv, false, 0, fmt.Errorf("peer %s: %w", peer, store.ErrMalformed)
	}
	return kvs[0], true, a.At, nil
}

func (h *Host) statusAt(ctx context.Context, peer string, shard uint64) (ShardStatus, error) {
	a, err := h.askStatus(ctx, peer, call{Verb: verbStatus, Shard: shard})
	if err != nil {
		return ShardStatus{}, err
	}
	return *a.Status, nil
}

// statusesAt is the status of the shard and of the peer's others; a peer of an earlier version tells no others.
func (h *Host) statusesAt(ctx context.Context, peer string, shard uint64) (ShardStatus, []ShardStatus, error) {
	a, err := h.askStatus(ctx, peer, call{Verb: verbStatus, Shard: shard, All: true})
	if err != nil {
		return ShardStatus{}, nil, err
	}
	return *a.Status, a.Statuses, nil
}

func (h *Host) askStatus(ctx context.Context, peer string, c call) (*answer, error) {
	a, err := h.ask(ctx, peer, c, readAttempt)
	if err == nil && a.Status == nil {
		err = fmt.Errorf("peer %s: %w", peer, store.ErrMalformed)
	}
	return a, err
}

func (h *Host) membersAt(ctx context.Context, peer string, shard uint64) (membership, error) {
	a, err := h.ask(ctx, peer, call{Verb: verbMembers, Shard: shard}, readAttempt)
	if err != nil {
		return membership{}, err
	}
	if a.Members == nil {
		return membership{}, fmt.Errorf("peer %s: %w", peer, store.ErrMalformed)
	}
	return *a.Members, nil
}

// open starts a stream: List or Watch. A Watch may be sent further calls.
func (h *Host) open(ctx context.Context, peer, method string, c call) (grpc.ClientStream, error) {
	dialling, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	conn, err := h.routes.connected(dialling, peer)
	if err != nil {
		return nil, err
	}
	talks := method == methodWatch
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: talks}, method)
	if err == nil {
		err = stream.SendMsg(&c)
	}
	if err == nil && !talks {
		err = stream.CloseSend()
	}
	if err != nil {
		return nil, &tryAgain{cause: fmt.Errorf("peer %s: %w", peer, err)}
	}
	return stream, nil
}

func (h *Host) receive(stream grpc.ClientStream, peer string, shard uint64) (*answer, error) {
	var a answer
	if err := stream.RecvMsg(&a); err != nil {
		return nil, &tryAgain{cause: fmt.Errorf("peer %s: %w", peer, err)}
	}
	return &a, h.digest(peer, shard, &a)
}

func (h *Host) listAt(ctx context.Context, peer string, shard uint64, opts ListOptions, level ReadLevel) (ListResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.open(ctx, peer, methodList, call{Shard: shard, List: &opts, Level: level})
	if err != nil {
		return ListResult{}, err
	}
	// The first message has to come within an attempt; a large list may then take
	// as long as ctx allows.
	slow := time.AfterFunc(readAttempt+answerSlack, cancel)
	defer slow.Stop()
	var res ListResult
	for {
		a, err := h.receive(stream, peer, shard)
		slow.Stop()
		if err != nil {
			return ListResult{}, err
		}
		if len(a.KVs) > 0 {
			kvs, err := store.DecodeKVs(a.KVs)
			if err != nil {
				return ListResult{}, fmt.Errorf("peer %s: %w", peer, err)
			}
			res.KVs = append(res.KVs, kvs...)
		}
		if a.Last {
			res.More, res.Count, res.Revision, res.Whole = a.More, a.Count, a.At, a.Whole
			return res, nil
		}
	}
}

// remoteWatch reads a watch from another peer.
type remoteWatch struct {
	host     *Host
	peer     string
	shard    uint64
	progress bool
	stream   grpc.ClientStream
	cancel   context.CancelFunc
	at       store.Revision
	// marks is whether any was asked for; wishes wait to be sent, and wished tells who sends them.
	marks  atomic.Bool
	mu     sync.Mutex
	wishes []store.Revision
	wished chan struct{}
}

func (h *Host) watchAt(ctx context.Context, peer string, shard uint64, opts WatchOptions) (*remoteWatch, error) {
	// The stream outlives ctx, which bounds the opening only.
	living, cancel := context.WithCancel(h.ctx)
	opening := context.AfterFunc(ctx, cancel)
	w := &remoteWatch{host: h, peer: peer, shard: shard, progress: opts.Progress, cancel: cancel, wished: make(chan struct{}, 1)}
	slow := time.AfterFunc(readAttempt+answerSlack, cancel)
	defer slow.Stop()
	stream, err := h.open(living, peer, methodWatch, call{Shard: shard, Watch: &opts})
	if err != nil {
		cancel()
		return nil, err
	}
	first, err := h.receive(stream, peer, shard)
	if err != nil {
		cancel()
		return nil, err
	}
	if !opening() || !slow.Stop() {
		cancel()
		return nil, &tryAgain{cause: fmt.Errorf("peer %s: too slow", peer)}
	}
	w.stream, w.at = stream, first.At
	if !h.spawn(w.sendWishes) {
		cancel()
		return nil, ErrClosed
	}
	return w, nil
}

func (w *remoteWatch) position() store.Revision { return w.at }

func (w *remoteWatch) stop() { w.cancel() }

// want passes the wish on, and does not wait for the network. Of wishes that wait the lowest and the highest count, as with a subscription.
func (w *remoteWatch) want(rev store.Revision) {
	w.marks.Store(true)
	w.mu.Lock()
	w.wishes = append(w.wishes, rev)
	slices.Sort(w.wishes)
	if n := len(w.wishes); n > 2 {
		w.wishes = append(w.wishes[:1], w.wishes[n-1])
	}
	w.mu.Unlock()
	select {
	case w.wished <- struct{}{}:
	default: // who sends will look anyway
	}
}

// sendWishes sends what is wished until the watch ends. If that fails, the stream has failed, and next says so.
func (w *remoteWatch) sendWishes() {
	defer w.cancel()
	for {
		select {
		case <-w.stream.Context().Done():
			return
		case <-w.wished:
		}
		w.mu.Lock()
		wishes := w.wishes
		w.wishes = nil
		w.mu.Unlock()
		for _, rev := range wishes {
			if w.stream.SendMsg(&call{Shard: w.shard, UpTo: rev}) != nil {
				return
			}
		}
	}
}

func (w *remoteWatch) next(ctx context.Context) ([]store.Event, error) {
	defer context.AfterFunc(ctx, w.cancel)()
	for {
		a, err := w.host.receive(w.stream, w.peer, w.shard)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		events, err := store.DecodeEvents(a.Events)
		if err != nil {
			return nil, fmt.Errorf("peer %s: %w", w.peer, err)
		}
		kept := events[:0]
		for _, ev := range events {
			w.host.clock.observe(ev.Revision)
			w.at = max(w.at, ev.Revision)
			if !ev.Progress || w.progress || w.marks.Load() {
				kept = append(kept, ev)
			}
		}
		if len(kept) > 0 {
			return kept, nil
		}
	}
}
