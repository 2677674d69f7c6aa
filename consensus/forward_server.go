package consensus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

const (
	grpcService = "shoal.Store"
	methodCall  = "/" + grpcService + "/Call"
	methodList  = "/" + grpcService + "/List"
	methodWatch = "/" + grpcService + "/Watch"

	// listChunk is about how many bytes of versions one message of a List holds.
	listChunk = 1 << 20
)

// storeServer answers other peers from the local replicas. It never passes a call
// on: a peer that asks the wrong one is told so, with what is known here.
type storeServer struct {
	host     *Host
	listener net.Listener
	grpc     *grpc.Server
	beats    beats
}

type storeService interface {
	call(ctx context.Context, c *call) *answer
	list(c *call, stream grpc.ServerStream) error
	watch(c *call, stream grpc.ServerStream) error
}

func newStoreServer(h *Host) (*storeServer, error) {
	codec, err := newWireCodec()
	if err != nil {
		return nil, err
	}
	l, err := h.cfg.Listen(ServiceStore)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", ServiceStore, err)
	}
	s := &storeServer{host: h, listener: l, grpc: grpc.NewServer(
		grpc.ForceServerCodec(codec),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 2 * time.Second, PermitWithoutStream: true}),
	)}
	s.grpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: grpcService,
		HandlerType: (*storeService)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Call", Handler: handleCall}},
		Streams: []grpc.StreamDesc{
			{StreamName: "List", Handler: handleStream(storeService.list), ServerStreams: true},
			{StreamName: "Watch", Handler: handleStream(storeService.watch), ServerStreams: true, ClientStreams: true},
		},
	}, s)
	return s, nil
}

//nolint:revive // gRPC says where the context goes
func handleCall(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var c call
	if err := decode(&c); err != nil {
		return nil, err
	}
	return srv.(storeService).call(ctx, &c), nil
}

func handleStream(do func(storeService, *call, grpc.ServerStream) error) grpc.StreamHandler {
	return func(srv any, stream grpc.ServerStream) error {
		var c call
		if err := stream.RecvMsg(&c); err != nil {
			return err
		}
		return do(srv.(storeService), &c, stream)
	}
}

func (s *storeServer) serve() {
	if err := s.grpc.Serve(s.listener); err != nil && s.host.ctx.Err() == nil {
		s.host.cfg.Logger.Error("store listener stopped", "err", err)
	}
}

func (s *storeServer) stop() { s.grpc.Stop() }

func (s *storeServer) call(ctx context.Context, c *call) *answer {
	a := &answer{}
	if err := s.answer(ctx, c, a); err != nil {
		return s.fail(c.Shard, err)
	}
	a.Leader = s.host.leaderPeer(c.Shard)
	return a
}

func (s *storeServer) answer(ctx context.Context, c *call, a *answer) error {
	h := s.host
	if c.Verb == verbStatus {
		status := h.statusOf(c.Shard)
		a.Status = &status
		if c.All {
			a.Statuses = slices.DeleteFunc(h.Status(), func(s ShardStatus) bool { return !s.answersWhere() })
		}
		return nil
	}
	if c.Verb == verbClock {
		a.Clock = h.readClock()
		return nil
	}
	r, here := h.replica(c.Shard)
	if !here {
		return errNoReplica
	}
	switch c.Verb {
	case verbCopy:
		described, err := h.copyHere(c.Shard)
		a.Copy = &described
		return err
	case verbPropose:
		res, err := s.propose(ctx, r, c.Command)
		a.Result = store.AppendResult(nil, res)
		return err
	case verbGet:
		view, err := h.viewHere(ctx, r, c.Level)
		if err != nil {
			return err
		}
		a.At = view.Revision()
		if kv, found := view.Get(c.Key); found {
			a.KVs = store.AppendKVs(nil, []store.KV{kv})
		}
		return nil
	case verbMembers:
		m, err := h.readMembership(ctx, r)
		if err != nil {
			return &tryAgain{cause: err}
		}
		a.Members = &m
		return nil
	default:
		return fmt.Errorf("unknown request %d", c.Verb)
	}
}

// propose checks what would stop or mislead every replica of the shard, had it come
// into the log.
func (s *storeServer) propose(ctx context.Context, r *replica, cmd []byte) (store.Result, error) {
	tx, err := store.DecodeTransaction(cmd)
	if err != nil {
		return store.Result{}, err
	}
	if err := s.host.checkSize(tx); err != nil {
		return store.Result{}, err
	}
	if err := s.host.clock.admit(ctx, tx.Stamp); err != nil {
		return store.Result{}, err
	}
	return s.host.proposeHere(ctx, r, cmd)
}

func (s *storeServer) fail(shard uint64, err error) *answer {
	f := wireFailure(err)
	f.Assignments = map[string][]byte{}
	for _, n := range []uint64{MetaShard, shard} {
		if a, ok := s.host.routes.assignment(n); ok {
			f.Assignments[shardmap.Key(n)] = a.Encode()
		}
	}
	return &answer{Failure: f, Leader: s.host.leaderPeer(shard)}
}

func (s *storeServer) list(c *call, stream grpc.ServerStream) error {
	r, here := s.host.replica(c.Shard)
	if !here || c.List == nil {
		return stream.SendMsg(s.fail(c.Shard, errNoReplica))
	}
	res, err := s.host.listHere(stream.Context(), r, *c.List, c.Level)
	if err != nil {
		return stream.SendMsg(s.fail(c.Shard, err))
	}
	for kvs := res.KVs; len(kvs) > 0; {
		n, size := 0, 0
		for n < len(kvs) && size < listChunk {
			size += len(kvs[n].Key) + len(kvs[n].Value)
			n++
		}
		if err := stream.SendMsg(&answer{KVs: store.AppendKVs(make([]byte, 0, size+64*n+16), kvs[:n])}); err != nil {
			return err
		}
		kvs = kvs[n:]
	}
	return stream.SendMsg(&answer{Last: true, More: res.More, Count: res.Count, At: res.Revision, Whole: res.Whole})
}

func (s *storeServer) watch(c *call, stream grpc.ServerStream) error {
	r, here := s.host.replica(c.Shard)
	if !here || c.Watch == nil {
		return stream.SendMsg(s.fail(c.Shard, errNoReplica))
	}
	if _, ready := r.view(); !ready {
		return stream.SendMsg(s.fail(c.Shard, &tryAgain{cause: errNotReady}))
	}
	if r.cutOff.Load() {
		return stream.SendMsg(s.fail(c.Shard, &tryAgain{cause: errCutOff}))
	}
	sub, err := r.hub().subscribe(*c.Watch)
	if err != nil {
		return stream.SendMsg(s.fail(c.Shard, closedToTryAgain(err)))
	}
	defer sub.stop()
	// The first message says that the watch stands, and where.
	if err := stream.SendMsg(&answer{At: sub.position()}); err != nil {
		return err
	}
	reader := s.beats.add(sub)
	defer s.beats.remove(reader)
	go func() {
		for { // ends with the stream
			var more call
			if stream.RecvMsg(&more) != nil {
				return
			}
			sub.want(more.UpTo)
		}
	}()
	for {
		events, err := sub.next(stream.Context())
		if len(events) > 0 {
			reader.told.Store(int64(events[len(events)-1].Revision))
		}
		if sendErr := sendEvents(stream, events); sendErr != nil {
			return sendErr
		}
		if stream.Context().Err() != nil {
			return stream.Context().Err()
		}
		if err != nil {
			return stream.SendMsg(s.fail(c.Shard, closedToTryAgain(err)))
		}
	}
}

func closedToTryAgain(err error) error {
	if errors.Is(err, errSourceClosed) {
		return &tryAgain{cause: err}
	}
	return err
}

// sendEvents sends the events in messages of bounded size.
func sendEvents(stream grpc.ServerStream, events []store.Event) error {
	for len(events) > 0 {
		n, size := 0, 0
		for n < len(events) && size < listChunk {
			size += len(events[n].Key) + len(events[n].Value) + len(events[n].Prev) + 64
			n++
		}
		if err := stream.SendMsg(&answer{Events: store.AppendEvents(make([]byte, 0, size+16), events[:n])}); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}
