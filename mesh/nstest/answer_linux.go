package nstest

import (
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Serve answers every TCP connection to l and every UDP packet to p with name and the address it came from. Over TCP it
// then echoes. It ends when the sockets are closed.
func Serve(l net.Listener, p net.PacketConn, name string) {
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answer(conn, name)
		}
	}()
	go func() {
		buf := make([]byte, 1500)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo([]byte(name+" "+host(from)), from) // the client notices
		}
	}()
}

func answer(conn net.Conn, name string) {
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, name, host(conn.RemoteAddr())); err != nil {
		return
	}
	_, _ = io.Copy(conn, conn) // ends when the client goes
}

func host(addr net.Addr) string {
	h, _, _ := net.SplitHostPort(addr.String())
	return h
}

// Ask dials a Serve from ns, or from the caller's namespace if ns is nil, and returns who answers and which address it
// saw.
func Ask(ns *Namespace, network, address string, timeout time.Duration) (name, saw string, err error) {
	var conn net.Conn
	if ns == nil {
		conn, err = net.DialTimeout(network, address, timeout)
	} else {
		conn, err = ns.Dial(network, address, timeout)
	}
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	return AskOn(conn, timeout)
}

// AskOn is Ask on a connection that is open. On TCP it reads the next line.
func AskOn(conn net.Conn, timeout time.Duration) (name, saw string, err error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", "", err
	}
	if _, udp := conn.(*net.UDPConn); udp {
		if _, err := conn.Write([]byte("?")); err != nil {
			return "", "", err
		}
	}
	buf := make([]byte, 200)
	n, err := conn.Read(buf)
	if err != nil {
		return "", "", err
	}
	name, saw, _ = strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	return name, saw, nil
}
