package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"shoal/cli/bench/load"
)

const (
	watchedPrefix = "/registry/configmaps/watched/"
	// perConnection is how many watchers share a connection, as the peers' watchers do.
	perConnection = 100
)

// fanout puts to a prefix that the watchers follow, spread over the members.
func fanout(ctx context.Context, client *clientv3.Client, endpoints []string, watchers, size int, span time.Duration) (load.Result, error) {
	var clients []*clientv3.Client
	for n := 0; n*perConnection < watchers; n++ {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoints[n%len(endpoints)]}, DialTimeout: 15 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			return load.Result{}, err
		}
		defer c.Close()
		clients = append(clients, c)
	}
	value := strings.Repeat("v", size)
	write := func(ctx context.Context, n int) error {
		_, err := client.Put(ctx, watchedPrefix+strconv.Itoa(n), value)
		return err
	}
	watch := func(ctx context.Context, watcher int, ready func(), seen func(int)) error {
		events := clients[watcher/perConnection].Watch(ctx, watchedPrefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		for answer := range events {
			if err := answer.Err(); err != nil {
				return err
			}
			ready()
			for _, event := range answer.Events {
				n, err := strconv.Atoi(strings.TrimPrefix(string(event.Kv.Key), watchedPrefix))
				if err != nil {
					return fmt.Errorf("unexpected key: %w", err)
				}
				seen(n)
			}
		}
		return fmt.Errorf("watch %d ended", watcher)
	}
	return load.Fanout(ctx, watchers, span, write, watch, func() error { return nil })
}
