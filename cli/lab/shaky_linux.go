package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Line is what is wrong with the line of a host, in both directions. Netem does that where the kernel has it; here frames pass through this
// process, so that no kernel needs to have anything.
type Line struct {
	// Delay is how late every frame comes, Jitter how much later some come, drawn for each: those behind overtake them.
	Delay, Jitter time.Duration
	// Double is the share of frames that come twice, from 0 to 1.
	Double float64
	// Loss is the share that never comes.
	Loss float64
}

// shaky carries frames between a host's cable and the bridge.
type shaky struct {
	sockets [2]int
	stop    chan struct{}
	running sync.WaitGroup
}

// Shake makes the line of a peer what is said; the zero Line mends it.
func (l *Lab) Shake(peer *Peer, line Line) error {
	if peer.shaky != nil {
		if err := l.underlay.steady(peer.host, peer.shaky); err != nil {
			return fmt.Errorf("mending the line of %s: %w", peer.Name, err)
		}
		peer.shaky = nil
	}
	if line == (Line{}) {
		return nil
	}
	var err error
	if peer.shaky, err = l.underlay.shake(peer.host, line); err != nil {
		return fmt.Errorf("shaking the line of %s: %w", peer.Name, err)
	}
	return nil
}

// plugOf and socketOf are the ends of the short cable that stands between the bridge and a host whose line is shaky.
func plugOf(h *host) string   { return "p" + h.cable }
func socketOf(h *host) string { return "s" + h.cable }

// shake takes the host's cable off the bridge, puts another one there, and carries frames between the two.
func (u *underlay) shake(h *host, line Line) (*shaky, error) {
	bridge, err := u.link.LinkByName("underlay")
	if err != nil {
		return nil, err
	}
	cable, err := u.link.LinkByName(h.cable)
	if err != nil {
		return nil, err
	}
	short := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: plugOf(h), MasterIndex: bridge.Attrs().Index}, PeerName: socketOf(h)}
	s := &shaky{sockets: [2]int{-1, -1}, stop: make(chan struct{})}
	err = errors.Join(u.link.LinkAdd(short), raise(u.link, plugOf(h)), raise(u.link, socketOf(h)))
	if err == nil {
		var socket netlink.Link
		if socket, err = u.link.LinkByName(socketOf(h)); err == nil {
			for i, index := range []int{cable.Attrs().Index, socket.Attrs().Index} {
				err = errors.Join(err, u.do(func() (err error) {
					s.sockets[i], err = frames(index)
					return err
				}))
			}
		}
	}
	if err == nil {
		err = u.link.LinkSetNoMaster(cable)
	}
	if err != nil {
		return nil, errors.Join(err, u.steady(h, s))
	}
	for i := range s.sockets {
		s.running.Go(func() { s.carry(s.sockets[i], s.sockets[1-i], line) })
	}
	return s, nil
}

// steady puts the host's cable back on the bridge.
func (u *underlay) steady(h *host, s *shaky) error {
	close(s.stop)
	s.running.Wait()
	var failed []error
	for _, socket := range s.sockets {
		if socket >= 0 {
			failed = append(failed, unix.Close(socket))
		}
	}
	if short, err := u.link.LinkByName(plugOf(h)); err == nil {
		failed = append(failed, u.link.LinkDel(short))
	}
	bridge, err := u.link.LinkByName("underlay")
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	cable, err := u.link.LinkByName(h.cable)
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	return errors.Join(append(failed, u.link.LinkSetMasterByIndex(cable, bridge.Attrs().Index))...)
}

const (
	// largestFrame is what a veth hands over at once when the sender leaves segmenting to the hardware that is not there.
	largestFrame = 80 << 10
	// lineRoom is how many frames may be on the way in one direction; what finds no room is lost, as on a real line.
	lineRoom = 4096
	// readPatience is how often a reader looks whether the line was mended.
	readPatience = 100 * time.Millisecond
)

// frames opens a socket for whole frames of an interface (packet(7)), with what the kernel has left to hardware described in front of each
// (PACKET_VNET_HDR), so that unfinished checksums and segments stay what they are.
func frames(index int) (int, error) {
	every := uint16(unix.ETH_P_ALL)
	every = every<<8 | every>>8
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	patience := unix.NsecToTimeval(readPatience.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20),
		unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: every, Ifindex: index}),
	)
	if err != nil {
		return -1, errors.Join(err, unix.Close(socket))
	}
	return socket, nil
}

// carry takes frames from one socket to another, as the line does, until it is mended.
func (s *shaky) carry(from, to int, line Line) {
	room := make(chan struct{}, lineRoom)
	var late sync.WaitGroup
	defer late.Wait()
	buffer := make([]byte, largestFrame)
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		n, err := unix.Read(from, buffer)
		if err != nil || n == 0 || rand.Float64() < line.Loss {
			continue // nothing came for a while, or it is lost
		}
		copies := 1
		if rand.Float64() < line.Double {
			copies = 2
		}
		for range copies {
			frame := append([]byte(nil), buffer[:n]...)
			select {
			case room <- struct{}{}:
			default:
				continue
			}
			wait := line.Delay
			if line.Jitter > 0 {
				wait += time.Duration(rand.Int64N(int64(line.Jitter)))
			}
			late.Add(1)
			time.AfterFunc(wait, func() {
				defer late.Done()
				defer func() { <-room }()
				// What does not fit is lost, as everything may be on such a line.
				_, _ = unix.Write(to, frame)
			})
		}
	}
}
