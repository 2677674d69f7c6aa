package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	upstreamTimeout = 2 * time.Second // per server asked; resolvers give up after 5 s
	forwardTimeout  = 4 * time.Second // for all of them
	reloadInterval  = 5 * time.Second // how often resolv.conf is looked at, and only when a query needs it
	maxForwards     = 1024            // at once; more are refused with SERVFAIL instead of piling up
)

// errNoUpstream says that a name outside the cluster was asked for and there is nobody to ask.
var errNoUpstream = errors.New("no upstream DNS server")

// upstreams are the servers for names outside the cluster.
type upstreams struct {
	path  string           // resolv.conf; empty: servers are fixed
	avoid []netip.AddrPort // our own addresses: asking ourselves would never end
	slots chan struct{}
	good  atomic.Int64 // index of the server that answered last

	mu      sync.Mutex
	checked time.Time
	mtime   time.Time
	servers []netip.AddrPort
}

func newUpstreams(c Config) *upstreams {
	return &upstreams{
		path: c.ResolvConf, avoid: c.Listen, servers: without(c.Upstreams, c.Listen), slots: make(chan struct{}, maxForwards),
	}
}

// list returns the servers, after reading resolv.conf again if it has changed.
func (u *upstreams) list() []netip.AddrPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); u.path != "" && now.Sub(u.checked) >= reloadInterval {
		u.checked = now
		if info, err := os.Stat(u.path); err != nil {
			u.servers, u.mtime = nil, time.Time{}
		} else if !info.ModTime().Equal(u.mtime) {
			u.servers, u.mtime = without(readServers(u.path), u.avoid), info.ModTime()
		}
	}
	return u.servers
}

// forward asks the servers in turn, starting with the one that answered last. A reply that says "server failure" or
// "refused" counts only if no other server knows better.
func (u *upstreams) forward(ctx context.Context, request *dns.Msg, tcp bool) (*dns.Msg, error) {
	servers := u.list()
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	default:
		return nil, fmt.Errorf("%d queries are waiting for upstream servers already", maxForwards)
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	var (
		errs  []error
		worst *dns.Msg
	)
	start := int(u.good.Load())
	for i := range servers {
		at := (start + i) % len(servers)
		reply, err := exchange(ctx, request, servers[at], tcp)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("ask %s: %w", servers[at], err))
		case reply.Rcode == dns.RcodeServerFailure || reply.Rcode == dns.RcodeRefused:
			worst = reply
		default:
			u.good.Store(int64(at))
			return reply, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if worst != nil {
		return worst, nil
	}
	return nil, errors.Join(errs...)
}

func exchange(ctx context.Context, request *dns.Msg, server netip.AddrPort, tcp bool) (*dns.Msg, error) {
	query := request.Copy()
	query.Id = dns.Id() // not the client's to choose
	client := &dns.Client{Timeout: upstreamTimeout}
	if tcp {
		client.Net = "tcp"
	}
	reply, _, err := client.ExchangeContext(ctx, query, server.String())
	return reply, err
}

// readServers takes what is readable; a broken file has no servers.
func readServers(path string) []netip.AddrPort {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	port, err := strconv.ParseUint(config.Port, 10, 16)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, text := range config.Servers {
		if addr, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.AddrPortFrom(addr, uint16(port)))
		}
	}
	return out
}

func without(servers, avoid []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(servers), func(s netip.AddrPort) bool { return slices.Contains(avoid, s) })
}

func isTCP(addr net.Addr) bool {
	_, tcp := addr.(*net.TCPAddr)
	return tcp
}
