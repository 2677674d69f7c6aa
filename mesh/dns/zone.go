package dns

import (
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"github.com/miekg/dns"
)

// Zone is a set of DNS records, each owned by what it was made from. A Zone never changes: With returns another one that
// shares most of its memory, so that queries read without locks and a batch appears at once. PURE.
type Zone struct {
	records *iradix.Tree[[]dns.RR] // by reversed name and owner
	owners  *iradix.Tree[[]string] // names of each owner
}

// Name is a name that exists, with its records; without any it answers "no data" instead of "no such name".
type Name struct {
	Name    string // lower case, fully qualified
	Records []dns.RR
}

// NewZone returns a zone without names.
func NewZone() *Zone {
	return &Zone{records: iradix.New[[]dns.RR](), owners: iradix.New[[]string]()}
}

// With returns the zone in which each owner in changes has exactly these names; none removes the owner.
func (z *Zone) With(changes map[string][]Name) *Zone {
	records, owners := z.records.Txn(), z.owners.Txn()
	for owner, names := range changes {
		before, _ := owners.Get([]byte(owner))
		for _, name := range before {
			records.Delete(recordKey(name, owner))
		}
		if len(names) == 0 {
			owners.Delete([]byte(owner))
			continue
		}
		list := make([]string, len(names))
		for i, n := range names {
			list[i] = n.Name
			records.Insert(recordKey(n.Name, owner), n.Records)
		}
		owners.Insert([]byte(owner), list)
	}
	return &Zone{records: records.Commit(), owners: owners.Commit()}
}

// Owners lists who has names, in order.
func (z *Zone) Owners() []string {
	var out []string
	z.owners.Root().Walk(func(key []byte, _ []string) bool {
		out = append(out, string(key))
		return false
	})
	return out
}

// Lookup returns the records of a name (lower case, fully qualified) of all types. exists is also true for a name that
// merely has others below it (RFC 8020: only what has nothing below it does not exist).
func (z *Zone) Lookup(name string) (records []dns.RR, exists bool) {
	key := reverse(name)
	root := z.records.Root()
	root.WalkPrefix(append([]byte(key), ownerMark), func(_ []byte, rr []dns.RR) bool {
		records, exists = append(records, rr...), true
		return false
	})
	if !exists {
		root.WalkPrefix(append([]byte(key), labelMark), func([]byte, []dns.RR) bool {
			exists = true
			return true
		})
	}
	return records, exists
}

// Marks below every byte of a host name, so that a name, its owners and its children are neighbours in the tree.
const (
	ownerMark = 0x00
	labelMark = 0x01
)

func recordKey(name, owner string) []byte {
	key := append([]byte(reverse(name)), ownerMark)
	return append(key, owner...)
}

// reverse turns "web.default.svc.cluster.local." into "local", "cluster", … with marks in between.
func reverse(name string) string {
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	for i, j := 0, len(labels)-1; i < j; i, j = i+1, j-1 {
		labels[i], labels[j] = labels[j], labels[i]
	}
	return strings.Join(labels, string(rune(labelMark)))
}
