package identity

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// WireGuardKey is a Curve25519 private or public key as WireGuard takes it.
type WireGuardKey [32]byte

// NewWireGuardKey makes a private key.
func NewWireGuardKey() (WireGuardKey, error) {
	var key WireGuardKey
	if _, err := rand.Read(key[:]); err != nil {
		return key, fmt.Errorf("make a WireGuard key: %w", err)
	}
	// RFC 7748 section 5 clamps the scalar when it is used; doing it here too
	// makes our keys equal to what `wg genkey` writes.
	key[0] &= 248
	key[31] = key[31]&127 | 64
	return key, nil
}

// Public is the public key of a private one.
func (k WireGuardKey) Public() WireGuardKey {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic(err) // impossible: only a wrong length fails, and the type fixes it
	}
	return WireGuardKey(private.PublicKey().Bytes())
}

// String is the base64 form that `wg` reads and prints.
func (k WireGuardKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// ParseWireGuardKey reads the base64 form.
func ParseWireGuardKey(text string) (WireGuardKey, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil || len(raw) != len(WireGuardKey{}) {
		return WireGuardKey{}, errors.New("not a WireGuard key: 32 bytes in base64 are expected")
	}
	return WireGuardKey(raw), nil
}
