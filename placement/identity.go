package placement

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"k8s.io/apimachinery/pkg/types"
)

// suffixAlphabet has no vowels and no easily confused characters, like upstream's name suffixes,
// so that no words appear in pod names.
const suffixAlphabet = "bcdfghjklmnpqrstvwxz2456789"

// Hash is a stable 64-bit hash of an identity, evenly spread: FNV-1a with the finaliser of
// splitmix64.
func Hash(identity string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(identity))
	z := h.Sum64()
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// TieBreak orders nodes that are equally good for a pod, given the hashes of the pod's UID and of
// the node's name: the smaller one wins. Nodes lie on a ring by their hashes, and the pod takes the
// first one at or after its own; so the winner among many can be found without looking at all.
func TieBreak(pod, node uint64) uint64 { return node - pod }

// Names makes names and UIDs for new objects out of a seed, so that planning is repeatable:
// the same seed gives the same sequence. The seed must differ between any two plans whose
// objects can meet; an owner's UID and the plan's time make one.
type Names struct {
	seed [sha256.Size]byte
	next uint64
}

// NewNames starts a sequence.
func NewNames(seed ...string) *Names {
	h := sha256.New()
	for _, s := range seed {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	n := &Names{}
	h.Sum(n.seed[:0])
	return n
}

// Suffix returns the next five characters for a generated name.
func (n *Names) Suffix() string {
	sum := n.draw()
	suffix := make([]byte, 5)
	for i := range suffix {
		suffix[i] = suffixAlphabet[int(sum[i])%len(suffixAlphabet)]
	}
	return string(suffix)
}

// UID returns the next UID, in the form of a version 8 (vendor specific) UUID, RFC 9562.
func (n *Names) UID() types.UID {
	sum := n.draw()
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]))
}

func (n *Names) draw() [sha256.Size]byte {
	buf := append(n.seed[:len(n.seed):len(n.seed)], 0, 0, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint64(buf[len(n.seed):], n.next)
	n.next++
	return sha256.Sum256(buf)
}
