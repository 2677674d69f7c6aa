// The end-to-end tests' container: what busybox does not have.
//
//	e2e serve PORT   HTTP on PORT (the answer is the host's name and $ANSWER), gRPC health on PORT+1; SIGTERM ends it at once
//	                 GET /bytes?n=N answers with N bytes
//	e2e get URL      fetch URL over a new connection and print the body
//	e2e resolve NAME print the IPv4 addresses that a name has
//	e2e pause        do nothing until SIGTERM
//	e2e record DIR   keep in a new file of DIR, named after the host and the moment, when this process began and when it last ran, in
//	                 nanoseconds of CLOCK_MONOTONIC, which all containers of a machine share; SIGTERM does not end it
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	switch {
	case len(args) == 1 && args[0] == "pause":
		<-ctx.Done()
		return nil
	case len(args) == 2 && args[0] == "serve":
		port, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return serve(ctx, port)
	case len(args) == 2 && args[0] == "get":
		return get(ctx, args[1])
	case len(args) == 2 && args[0] == "record":
		return record(args[1])
	case len(args) == 2 && args[0] == "resolve":
		addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", args[1])
		for _, address := range addresses {
			fmt.Println(address.Unmap())
		}
		return err
	}
	return errors.New("usage: e2e serve PORT | get URL | resolve NAME | record DIR | pause")
}

// record runs until it is killed.
func record(dir string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	begun, err := monotonic()
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s.%d", name, begun)))
	if err != nil {
		return err
	}
	defer file.Close()
	for {
		now, err := monotonic()
		if err != nil {
			return err
		}
		if _, err := file.WriteAt(fmt.Appendf(nil, "%020d %020d\n", begun, now), 0); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func monotonic() (int64, error) {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return now.Nano(), err
}

func get(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func serve(ctx context.Context, port int) error {
	probes, err := net.Listen("tcp", fmt.Sprintf(":%d", port+1))
	if err != nil {
		return err
	}
	healthy := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(healthy, health.NewServer())
	go func() { _ = healthy.Serve(probes) }()
	defer healthy.Stop()

	name, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%s %s\n", name, os.Getenv("ANSWER")) })
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		_, _ = w.Write(make([]byte, n))
	})
	server := &http.Server{Addr: fmt.Sprintf(":%d", port), ReadHeaderTimeout: 5 * time.Second, Handler: mux}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	fmt.Println("serving")
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return server.Shutdown(context.WithoutCancel(ctx))
	}
}
