package vip

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Keys are concatenations: every part is padded to 4 bytes. Addresses and ports are in network order, the index of an
// endpoint is in the machine's, because that is how numgen writes it.

const (
	frontBytes  = 12 // address, protocol, port
	targetBytes = 8  // address, port
	indexBytes  = 4
)

func encodeFront(k FrontKey) []byte {
	key := make([]byte, frontBytes, frontBytes+targetBytes)
	addr := k.Addr.As4()
	copy(key, addr[:])
	key[4] = byte(k.Protocol)
	binary.BigEndian.PutUint16(key[8:], k.Port)
	return key
}

func encodeTarget(t netip.AddrPort) []byte {
	data := make([]byte, targetBytes)
	addr := t.Addr().As4()
	copy(data, addr[:])
	binary.BigEndian.PutUint16(data[4:], t.Port())
	return data
}

func encodeVerdict(v VerdictElement) nftables.SetElement {
	verdict := &expr.Verdict{Kind: expr.VerdictDrop}
	if !v.Verdict.Drop {
		verdict = &expr.Verdict{Kind: expr.VerdictGoto, Chain: v.Verdict.Chain.Name()}
	}
	return nftables.SetElement{Key: encodeFront(v.Key), VerdictData: verdict}
}

func encodeKey(k FrontKey) nftables.SetElement { return nftables.SetElement{Key: encodeFront(k)} }

func encodeEndpoint(e EndpointElement) nftables.SetElement {
	return nftables.SetElement{
		Key: append(encodeFront(e.Key.Front), nativeUint32(e.Key.Index)...),
		Val: encodeTarget(e.Target),
	}
}

func encodeSticky(k StickyKey) nftables.SetElement {
	return nftables.SetElement{Key: append(encodeFront(k.Front), encodeTarget(k.Target)...)}
}

// encodeSource makes an element of a set of ranges: both ends of every part, also of those that are one value.
func encodeSource(k SourceKey) nftables.SetElement {
	from := k.Source.Addr().As4()
	last := binary.BigEndian.Uint32(from[:]) | uint32(1<<(32-k.Source.Bits())-1)
	front := encodeFront(k.Front)
	return nftables.SetElement{
		Key:    slices.Concat(front, from[:]),
		KeyEnd: binary.BigEndian.AppendUint32(slices.Clone(front), last),
	}
}

func decodeSource(key, end []byte) (netip.Prefix, error) {
	if len(key) < frontBytes+4 || len(end) < frontBytes+4 {
		return netip.Prefix{}, fmt.Errorf("range of %d and %d bytes is too short", len(key), len(end))
	}
	from, to := key[frontBytes:], end[frontBytes:]
	size := binary.BigEndian.Uint32(to) - binary.BigEndian.Uint32(from)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(from)), 32-bits.Len32(size)), nil
}

func nativeUint32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func decodeFront(key []byte) (FrontKey, error) {
	if len(key) < frontBytes {
		return FrontKey{}, fmt.Errorf("key of %d bytes is too short", len(key))
	}
	return FrontKey{
		Addr: netip.AddrFrom4([4]byte(key)), Protocol: Protocol(key[4]), Port: binary.BigEndian.Uint16(key[8:]),
	}, nil
}

func decodeTarget(data []byte) (netip.AddrPort, error) {
	if len(data) < targetBytes {
		return netip.AddrPort{}, fmt.Errorf("target of %d bytes is too short", len(data))
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data)), binary.BigEndian.Uint16(data[4:])), nil
}

func nativeIndex(key []byte) uint32 { return binary.NativeEndian.Uint32(key) }

func bigUint32(data []byte) uint32 {
	if len(data) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(data)
}
