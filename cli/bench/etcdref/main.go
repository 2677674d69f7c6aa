// Command etcdref is what the bench holds the store against: an etcd of one or more members, each a process of its own on this machine's
// loopback. It is loaded with puts through a client over gRPC and prints a load.Result as JSON; with --serve the first member is this
// process and leads, the load is made in it without gRPC, and it reads load.Cases and prints load.Answers, as storeref does.
//
// It is a program apart, so that the peer's binary does not carry etcd's server.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"shoal/cli/bench/load"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "etcdref: "+err.Error())
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("etcdref", flag.ContinueOnError)
	dir := flags.String("dir", "", "folder for the members' data")
	span := flags.Duration("for", 10*time.Second, "how long to load them")
	inFlight := flags.Int("in-flight", 32, "puts in flight")
	size := flags.Int("bytes", 1024, "size of a value")
	count := flags.Int("members", 3, "how many members")
	watchers := flags.Int("watchers", 0, "instead of the load, how long puts take to so many watchers")
	serve := flags.Bool("serve", false, "read cases from the standard input")
	var member member
	flags.StringVar(&member.name, "member", "", "run this member instead (used internally)")
	flags.StringVar(&member.client, "client", "", "the member's URL for clients")
	flags.StringVar(&member.peer, "peer", "", "the member's URL for members")
	flags.StringVar(&member.cluster, "cluster", "", "name=URL of all members")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("--dir is needed")
	}
	if member.name != "" {
		return member.run(ctx, *dir)
	}
	if *serve {
		return serveCases(ctx, *dir, *count, os.Stdin, out)
	}
	result, err := measure(ctx, *dir, *count, func(ctx context.Context, client *clientv3.Client, endpoints []string) (load.Result, error) {
		if *watchers > 0 {
			return fanout(ctx, client, endpoints, *watchers, *size, *span)
		}
		return puts(ctx, client, *inFlight, *size, *span)
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

// member is one etcd.
type member struct{ name, client, peer, cluster string }

// run serves until ctx ends: every put is on disk before it is answered.
func (m member) run(ctx context.Context, dir string) error {
	server, err := m.start(dir)
	if err != nil {
		return err
	}
	defer server.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Err():
		return err
	}
}

// start starts the member in this process, with etcd's own defaults but for the quota, which a long bench would meet.
func (m member) start(dir string) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster = m.name, filepath.Join(dir, m.name), m.cluster
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.QuotaBackendBytes = 16 << 30
	clientURL, err := url.Parse(m.client)
	if err != nil {
		return nil, err
	}
	peerURL, err := url.Parse(m.peer)
	if err != nil {
		return nil, err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	return embed.StartEtcd(cfg)
}

// process is the command that runs the member.
func (m member) process(ctx context.Context, self, dir string) *exec.Cmd {
	command := exec.CommandContext(ctx, self, "--dir", dir, "--member", m.name, "--client", m.client, "--peer", m.peer, "--cluster", m.cluster)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = 5 * time.Second
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.Stderr = os.Stderr
	return command
}

// measure runs members and a load on them.
func measure(ctx context.Context, dir string, count int,
	take func(ctx context.Context, client *clientv3.Client, endpoints []string) (load.Result, error),
) (result load.Result, err error) {
	members, err := plan(count)
	if err != nil {
		return result, err
	}
	self, err := os.Executable()
	if err != nil {
		return result, err
	}
	ctx, end := context.WithCancel(ctx)
	var running []*exec.Cmd
	defer func() {
		end()
		for _, command := range running {
			_ = command.Wait() // it was asked to end
		}
	}()
	var endpoints []string
	for _, m := range members {
		command := m.process(ctx, self, dir)
		if err := command.Start(); err != nil {
			return result, err
		}
		running, endpoints = append(running, command), append(endpoints, m.client)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 15 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return result, err
	}
	defer client.Close()
	if err := awaitPut(ctx, client); err != nil {
		return result, err
	}
	return take(ctx, client, endpoints)
}

func puts(ctx context.Context, client *clientv3.Client, inFlight, size int, span time.Duration) (load.Result, error) {
	value := strings.Repeat("v", size)
	var made atomic.Int64
	return load.Run(ctx, inFlight, span, func(ctx context.Context, _ int) error {
		_, err := client.Put(ctx, fmt.Sprintf("/registry/configmaps/bench/c%d", made.Add(1)), value)
		return err
	})
}

// plan gives every member two free ports.
func plan(count int) ([]member, error) {
	var members []member
	var cluster []string
	for n := range count {
		urls := [2]string{}
		for i := range urls {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			urls[i] = "http://" + listener.Addr().String()
			// It stays open until all are chosen, or the same port might be given twice.
			defer listener.Close()
		}
		m := member{name: fmt.Sprintf("member-%d", n+1), client: urls[0], peer: urls[1]}
		members, cluster = append(members, m), append(cluster, m.name+"="+m.peer)
	}
	for i := range members {
		members[i].cluster = strings.Join(cluster, ",")
	}
	return members, nil
}

// awaitPut returns when the members have elected a leader.
func awaitPut(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, time.Second)
		_, err := client.Put(attempt, "/ready", "yes")
		stop()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("etcd does not come up: %w", err)
		}
	}
}
