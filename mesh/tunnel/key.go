package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
)

// Key is a Curve25519 key, private or public. Its text form is base64, as in WireGuard's own tools.
type Key [32]byte

// NewPrivateKey makes a key for this peer's end; keeping it (mode 0600) is the caller's part.
func NewPrivateKey() (Key, error) {
	var k Key
	if _, err := rand.Read(k[:]); err != nil {
		return Key{}, fmt.Errorf("make a tunnel key: %w", err)
	}
	k[0] &= 248 // clamped as in RFC 7748 section 5, so that device and file agree on the bytes
	k[31] = k[31]&127 | 64
	return k, nil
}

// ParseKey reads a key's base64 form.
func ParseKey(text string) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != len(Key{}) {
		return Key{}, fmt.Errorf("not a WireGuard key: %d bytes of base64, %v", len(raw), err)
	}
	return Key(raw), nil
}

// Public returns the public half of private key k.
func (k Key) Public() Key {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil { // only for a wrong length, which the type rules out
		panic(err)
	}
	return Key(private.PublicKey().Bytes())
}

func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }
