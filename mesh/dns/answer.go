package dns

import (
	"math/rand/v2"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// maxAliases is how many CNAMEs are followed; more is a loop.
const maxAliases = 8

// answer fills reply from zone as far as the zone goes. It returns the question that remains for an upstream server:
// the name itself if it is none of ours, or the end of a chain of aliases.
func answer(z *Zone, domain string, q dns.Question, reply *dns.Msg) (remains dns.Question, forward bool) {
	q.Name = strings.ToLower(q.Name)
	for range maxAliases {
		records, status := find(z, domain, q.Name)
		if status == foreign {
			return q, true
		}
		reply.Authoritative = true
		var alias *dns.CNAME
		matched := 0
		for _, rr := range records {
			if c, ok := rr.(*dns.CNAME); ok {
				alias = c
			}
			if rr.Header().Rrtype == q.Qtype || q.Qtype == dns.TypeANY {
				reply.Answer = append(reply.Answer, rr)
				matched++
			}
		}
		switch {
		case matched > 0:
			shuffle(reply.Answer[len(reply.Answer)-matched:])
			reply.Extra = append(reply.Extra, additional(z, reply.Answer)...)
			return q, false
		case alias != nil:
			reply.Answer = append(reply.Answer, alias)
			q.Name = strings.ToLower(alias.Target)
			continue
		case status == missing:
			reply.Rcode = dns.RcodeNameError
		}
		reply.Ns = append(reply.Ns, soa(domain))
		return q, false
	}
	reply.Rcode = dns.RcodeServerFailure
	return q, false
}

type status int

const (
	found   status = iota + 1
	missing        // ours, and no such name
	foreign        // not ours to answer
)

func find(z *Zone, domain, name string) ([]dns.RR, status) {
	records, exists := z.Lookup(name)
	switch {
	case exists && (len(records) > 0 || dns.IsSubDomain(domain, name)):
		return records, found
	case !dns.IsSubDomain(domain, name):
		// Reverse names of addresses that no Service has belong to somebody else, and so does in-addr.arpa itself.
		return nil, foreign
	}
	if addr, ok := podAddress(name, domain); ok {
		if addr.Is4() {
			return []dns.RR{&dns.A{Hdr: header(name, dns.TypeA), A: net.IP(addr.AsSlice())}}, found
		}
		return []dns.RR{&dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: net.IP(addr.AsSlice())}}, found
	}
	if rest, ok := strings.CutSuffix(name, ".pod."+domain); ok && !strings.Contains(rest, ".") {
		return nil, found // a namespace: there are names below it
	}
	return nil, missing
}

// additional gives the addresses of SRV targets along, which saves the client a query each.
func additional(z *Zone, answers []dns.RR) []dns.RR {
	var extra []dns.RR
	for _, rr := range answers {
		srv, ok := rr.(*dns.SRV)
		if !ok {
			continue
		}
		records, _ := z.Lookup(srv.Target)
		for _, r := range records {
			if t := r.Header().Rrtype; t == dns.TypeA || t == dns.TypeAAAA {
				extra = append(extra, r)
			}
		}
	}
	return extra
}

// shuffle spreads clients that always take the first address.
func shuffle(records []dns.RR) {
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
}
