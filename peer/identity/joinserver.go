package identity

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// JoinServer lets further hosts into the cluster. Any peer runs one.
type JoinServer struct {
	Peer    *Peer
	Version string

	// LookupToken reads the token with the given ID; found is false when there is none.
	LookupToken func(ctx context.Context, id string) (record TokenRecord, found bool, err error)
	// NameTaken tells whether another peer than peerID has the node name.
	NameTaken func(ctx context.Context, name, peerID string) (bool, error)
	// RegisterPeer writes the peer down before it gets its certificate. It may
	// return a *Refusal, for example when the name was taken meanwhile.
	RegisterPeer func(ctx context.Context, record PeerRecord) error
	// Members are the gossip addresses of peers believed alive, itself included.
	Members func() []string

	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: slog.Default()

	attempts attempts
}

func (s *JoinServer) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *JoinServer) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

// Run serves joiners on the listener of JoinService until ctx ends.
func (s *JoinServer) Run(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: 20 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.logger().Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve joiners: %w", err)
	}
	return nil
}

// Handler serves the exchange.
func (s *JoinServer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+helloPath, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, Hello{ClusterID: s.Peer.Cluster.ID, PeerID: s.Peer.ID, Name: s.Peer.Name, Version: s.Version, Time: s.now()})
	})
	mux.HandleFunc("POST "+joinPath, s.serveJoin)
	return mux
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the joiner went away: it will ask again
}

func (s *JoinServer) serveJoin(w http.ResponseWriter, r *http.Request) {
	source := sourceOf(r)
	if !s.attempts.allowed(source, s.now()) {
		refused := refusal(ReasonTooMany, "too many failed joins: wait a minute and try again")
		reply(w, refused.status(), refused)
		return
	}
	var request JoinRequest
	r.Body = http.MaxBytesReader(w, r.Body, joinLimit)
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		s.attempts.failed(source, s.now())
		refused := refusal(ReasonMalformed, "the join request is not readable: %v", err)
		reply(w, refused.status(), refused)
		return
	}
	response, err := s.admit(r.Context(), request)
	if err == nil {
		s.logger().Info("peer joined", "name", request.Name, "source", source, "version", request.Version)
		reply(w, http.StatusOK, response)
		return
	}
	var refused *Refusal
	if !errors.As(err, &refused) {
		// The cause may name internals; the joiner has proved nothing or
		// cannot help it, so only the log gets it.
		refused = refusal(ReasonUnavailable, "the cluster cannot let a peer in at this moment (its store does not answer): try again")
	}
	if refused.Reason == ReasonWrongToken || refused.Reason == ReasonExpiredToken || refused.Reason == ReasonMalformed {
		s.attempts.failed(source, s.now())
	}
	s.logger().Warn("join refused", "name", request.Name, "source", source, "reason", refused.Reason, "error", err)
	reply(w, refused.status(), refused)
}

func sourceOf(r *http.Request) netip.Addr {
	source, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // all unreadable ones share one count
	}
	return source.Addr().Unmap()
}

// admit decides in the order that tells a stranger least: clock and token
// first, then the request's own form, then the name.
func (s *JoinServer) admit(ctx context.Context, request JoinRequest) (*JoinResponse, error) {
	now := s.now()
	if err := CheckClock(request.Time, now); err != nil {
		return nil, err
	}
	if err := s.checkToken(ctx, request, now); err != nil {
		return nil, err
	}
	record, csr, err := request.validate(s.Peer.Cluster)
	if err != nil {
		return nil, err
	}
	record.Joined = now
	taken, err := s.NameTaken(ctx, record.Name, record.PeerID)
	if err != nil {
		return nil, fmt.Errorf("look up the name %s: %w", record.Name, err)
	}
	if taken {
		return nil, NameTakenRefusal(record.Name)
	}
	leaf, err := s.Peer.Cluster.SignPeer(now, csr, record.Name, record.Addresses)
	if err != nil {
		return nil, refusal(ReasonMalformed, "%v", err)
	}
	if err := s.RegisterPeer(ctx, record); err != nil {
		return nil, fmt.Errorf("register peer %s: %w", record.Name, err)
	}
	return &JoinResponse{Cluster: s.Peer.Cluster, Certificate: leaf.Raw, Members: s.Members()}, nil
}

// NameTakenRefusal says that another peer has the name.
func NameTakenRefusal(name string) *Refusal {
	return refusal(ReasonNameTaken, "the name %q is taken by another peer of this cluster: choose another with --name, or remove the old peer first (`peer delete node %s`)", name, name)
}

func (s *JoinServer) checkToken(ctx context.Context, request JoinRequest, now time.Time) error {
	if !tokenIDPattern.MatchString(request.TokenID) {
		return TokenRecord{}.Check(request.TokenID, request.TokenSecret, now)
	}
	record, found, err := s.LookupToken(ctx, request.TokenID)
	if err != nil {
		return fmt.Errorf("look up the token: %w", err)
	}
	if !found {
		record = TokenRecord{}
	}
	return record.Check(request.TokenID, request.TokenSecret, now)
}

// validate turns the request into the record of a peer.
func (r JoinRequest) validate(cluster *Cluster) (PeerRecord, *x509.CertificateRequest, error) {
	var none PeerRecord
	if problems := validation.IsDNS1123Subdomain(r.Name); len(problems) > 0 || len(r.Name) > 63 {
		return none, nil, refusal(ReasonMalformed, "the name %q is not a DNS name of at most 63 characters: choose another with --name", r.Name)
	}
	if r.Port < 1 || r.Port > 65535 {
		return none, nil, refusal(ReasonMalformed, "the port %d is not between 1 and 65535", r.Port)
	}
	if len(r.Addresses) == 0 || len(r.Addresses) > 32 {
		return none, nil, refusal(ReasonMalformed, "between 1 and 32 addresses are expected, not %d", len(r.Addresses))
	}
	for _, address := range r.Addresses {
		if !address.IsValid() || address.IsUnspecified() || address.IsMulticast() {
			return none, nil, refusal(ReasonMalformed, "%s is no address that other peers can reach: give one with --advertise", address)
		}
		if cluster.ClusterCIDR.Contains(address) || cluster.ServiceCIDR.Contains(address) {
			return none, nil, refusal(ReasonMalformed, "the address %s lies inside the cluster's pod range %s or Service range %s: give another with --advertise",
				address, cluster.ClusterCIDR, cluster.ServiceCIDR)
		}
	}
	wireGuard, err := ParseWireGuardKey(r.WireGuard)
	if err != nil {
		return none, nil, refusal(ReasonMalformed, "%v", err)
	}
	csr, err := x509.ParseCertificateRequest(r.Request)
	if err != nil {
		return none, nil, refusal(ReasonMalformed, "the certificate request is not readable: %v", err)
	}
	id, err := PeerID(csr.PublicKey)
	if err != nil {
		return none, nil, refusal(ReasonMalformed, "%v", err)
	}
	return PeerRecord{
		PeerID: id, Name: r.Name, Version: r.Version, Zone: r.Zone,
		WireGuard: wireGuard, Addresses: r.Addresses, Port: r.Port,
	}, csr, nil
}
