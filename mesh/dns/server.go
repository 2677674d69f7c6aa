// Package dns answers for the cluster's names on every node: Services, their endpoints and pods, as Kubernetes
// specifies them. Everything else is passed on to the node's own name servers.
//
// It listens on a link-local address of the loopback interface, the same on every node, so a pod's resolv.conf never
// changes and a query never leaves the node.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"shoal/mesh/services"
)

// DefaultAddress is where every node's pods find their DNS server.
var DefaultAddress = netip.MustParseAddrPort("169.254.20.10:53")

// Config says where the server listens and whom it asks for names outside the cluster.
type Config struct {
	Listen     []netip.AddrPort // UDP and TCP; empty means DefaultAddress. Link-local ones are added to the loopback
	Domain     string           // empty means cluster.local
	Upstreams  []netip.AddrPort // servers for other names; if empty, those of ResolvConf
	ResolvConf string           // empty means /etc/resolv.conf; followed when it changes
	Logger     *slog.Logger
}

// Server is a DNS server with its sockets open.
type Server struct {
	domain    string
	upstreams *upstreams
	logger    *slog.Logger
	servers   []*dns.Server
	ctx       context.Context // ends with Close: queries on their way to an upstream server are given up
	cancel    context.CancelFunc

	zone  atomic.Pointer[Zone]
	mu    sync.Mutex // for index, and for writing zone
	index *services.Index
}

const (
	defaultDomain     = "cluster.local"
	defaultResolvConf = "/etc/resolv.conf"
	// udpSize is the largest UDP answer: what passes everywhere unfragmented (https://www.dnsflagday.net/2020/).
	udpSize         = 1232
	shutdownTimeout = 2 * time.Second
)

// Open opens the sockets; Run serves. Until the first Sync only the fixed names exist.
func Open(_ context.Context, c Config) (*Server, error) {
	if len(c.Listen) == 0 {
		c.Listen = []netip.AddrPort{DefaultAddress}
	}
	s := New(c)
	for _, at := range c.Listen {
		if err := s.listen(at); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// New makes a server without sockets, for who calls ServeDNS by other ways.
func New(c Config) *Server {
	if c.Domain == "" {
		c.Domain = defaultDomain
	}
	if len(c.Upstreams) == 0 && c.ResolvConf == "" {
		c.ResolvConf = defaultResolvConf
	} else if len(c.Upstreams) > 0 {
		c.ResolvConf = ""
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	domain := strings.ToLower(dns.Fqdn(c.Domain))
	s := &Server{domain: domain, upstreams: newUpstreams(c), logger: c.Logger, index: services.NewIndex()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.zone.Store(NewZone().With(map[string][]Name{"": fixed(domain)}))
	return s
}

func (s *Server) listen(at netip.AddrPort) error {
	if at.Addr().IsLinkLocalUnicast() {
		if err := assignLoopback(at.Addr()); err != nil {
			return fmt.Errorf("give the loopback interface the DNS address %s: %w", at.Addr(), err)
		}
	}
	packets, err := net.ListenPacket("udp", at.String())
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	s.servers = append(s.servers, &dns.Server{PacketConn: packets, Handler: s, UDPSize: udpSize})
	streams, err := net.Listen("tcp", at.String())
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	s.servers = append(s.servers, &dns.Server{Listener: streams, Handler: s})
	return nil
}

// Addresses are where the server listens, UDP and TCP in turn.
func (s *Server) Addresses() []net.Addr {
	var out []net.Addr
	for _, server := range s.servers {
		if server.PacketConn != nil {
			out = append(out, server.PacketConn.LocalAddr())
		} else {
			out = append(out, server.Listener.Addr())
		}
	}
	return out
}

// Run serves until ctx ends, then closes the sockets.
func (s *Server) Run(ctx context.Context) error {
	errs := make(chan error, len(s.servers))
	for _, server := range s.servers {
		go func() { errs <- server.ActivateAndServe() }()
	}
	var err error
	running := len(s.servers)
	select {
	case <-ctx.Done():
	case err = <-errs:
		running--
	}
	err = errors.Join(err, s.Close())
	for range running {
		err = errors.Join(err, ignoreClosed(<-errs))
	}
	if err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	return nil
}

// Close closes the sockets. The address stays on the loopback interface, where it harms nobody.
func (s *Server) Close() error {
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	var errs []error
	for _, server := range s.servers {
		if err := server.ShutdownContext(ctx); err == nil {
			continue
		}
		// Not started, or still busy: the socket goes, whatever hangs on it.
		if server.PacketConn != nil {
			errs = append(errs, ignoreClosed(server.PacketConn.Close()))
		} else {
			errs = append(errs, ignoreClosed(server.Listener.Close()))
		}
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Sync takes in a batch; its names are answered as soon as it returns, all at once.
func (s *Server) Sync(b services.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := map[string][]Name{}
	for _, key := range s.index.Update(b) {
		var names []Name
		if service, ok := s.index.Get(key); ok {
			names = Names(service, s.domain)
		}
		changes[key.String()] = names
	}
	s.zone.Store(s.zone.Load().With(changes))
}

// ServeDNS answers one query; it is called by the sockets' loops, each query in its own goroutine.
func (s *Server) ServeDNS(w dns.ResponseWriter, request *dns.Msg) {
	reply := s.reply(request, isTCP(w.RemoteAddr()))
	if err := w.WriteMsg(reply); err != nil && !errors.Is(err, net.ErrClosed) {
		s.logger.Debug("DNS answer not sent", "to", w.RemoteAddr(), "err", err)
	}
}

func (s *Server) reply(request *dns.Msg, tcp bool) *dns.Msg {
	reply := new(dns.Msg).SetReply(request)
	reply.RecursionAvailable = true
	reply.Compress = true
	switch {
	case request.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
	case len(request.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
	case request.Question[0].Qclass != dns.ClassINET, isTransfer(request.Question[0].Qtype):
		reply.Rcode = dns.RcodeRefused
	default:
		s.resolve(request, reply, tcp)
	}
	size := dns.MaxMsgSize
	if edns := request.IsEdns0(); edns != nil {
		reply.Extra = slices.DeleteFunc(reply.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
		reply.SetEdns0(udpSize, false)
		if !tcp {
			size = min(max(int(edns.UDPSize()), dns.MinMsgSize), udpSize)
		}
	} else if !tcp {
		size = dns.MinMsgSize
	}
	reply.Truncate(size)
	return reply
}

func (s *Server) resolve(request, reply *dns.Msg, tcp bool) {
	remains, forward := answer(s.zone.Load(), s.domain, request.Question[0], reply)
	if !forward {
		return
	}
	query := request.Copy()
	query.Question[0] = remains
	upstream, err := s.upstreams.forward(s.ctx, query, tcp)
	if err != nil {
		s.logger.Debug("DNS query not answered", "name", remains.Name, "err", err)
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	reply.Authoritative = false
	reply.Rcode, reply.Truncated, reply.RecursionAvailable = upstream.Rcode, upstream.Truncated, true
	reply.Answer = append(reply.Answer, upstream.Answer...)
	reply.Ns, reply.Extra = upstream.Ns, upstream.Extra
}

func isTransfer(qtype uint16) bool { return qtype == dns.TypeAXFR || qtype == dns.TypeIXFR }
