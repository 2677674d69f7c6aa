package membership

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// seal makes of a gossip message the packet that a holder of the key sends: the version of the encryption, a nonce, and the message under
// AES-GCM; version 0 has the message padded (PKCS #7), which is left to the caller.
func seal(t testing.TB, version byte, message []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	return gcm.Seal(slices.Concat([]byte{version}, nonce), nonce, message, nil)
}

// FuzzGossip hands a peer what somebody sends who holds the gossip key and means no good, or is broken: whatever the message is, the peer
// goes on, believes in itself, and lets the next one in. The seeds in testdata are one message of each kind, as peers send them.
func FuzzGossip(f *testing.F) {
	f.Add(byte(0), bytes.Repeat([]byte{0xff}, 16))                              // more padding than there is
	f.Add(byte(2), []byte{0, 1})                                                // an encryption that nobody knows
	f.Add(byte(1), []byte("\x00\x82\xa4Node\xb00000000000000001\xa5SeqNo\x01")) // ping
	f.Fuzz(func(t *testing.T, version byte, message []byte) {
		synctest.Test(t, func(t *testing.T) {
			t.Cleanup(func() { time.Sleep(time.Minute) }) // as in bubble
			n := newNetwork(1, 0, time.Millisecond)
			a, b := virtual(t, n, 1, nil), virtual(t, n, 2, nil)
			join(t, b, a)
			stranger := n.host(netip.MustParseAddrPort("10.9.9.9:1"))
			defer stranger.Close()
			if _, err := stranger.WriteTo(seal(t, version, message), net.UDPAddrFromAddrPort(a.advertise)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			select {
			case <-a.Done():
				t.Fatal("it has stopped")
			default:
			}
			next := virtual(t, n, 60000, nil)
			join(t, next, a)
			within(t, 10*time.Second, "the next one is in", func() bool {
				alive := a.Alive()
				return slices.Contains(alive, ids(1)[0]) && slices.Contains(alive, ids(60000)[0])
			})
		})
	})
}
