package controllers

import (
	"context"
	"fmt"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
	tokens "k8s.io/kubernetes/pkg/serviceaccount"
)

// accounts gives each namespace its default service account.
func accounts(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c, err := serviceaccount.NewServiceAccountsController(klog.FromContext(ctx), e.informers.Core().V1().ServiceAccounts(),
		e.informers.Core().V1().Namespaces(), client, serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

// accountTokens fills Secrets of type kubernetes.io/service-account-token. It has no bootstrap role: upstream runs it with
// all rights, since it is what gives the other controllers theirs.
func accountTokens(ctx context.Context, e *environment, _ string) (runner, error) {
	generator, err := tokens.JWTTokenGenerator(tokens.LegacyIssuer, e.ServiceAccountKey)
	if err != nil {
		return nil, fmt.Errorf("service-account key: %w", err)
	}
	c, err := serviceaccount.NewTokensController(klog.FromContext(ctx), e.informers.Core().V1().ServiceAccounts(),
		e.tokens.Core().V1().Secrets(), e.client,
		serviceaccount.TokensControllerOptions{TokenGenerator: generator, RootCA: e.RootCA})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

// rootCA puts the CA of the API into each namespace.
func rootCA(_ context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c, err := rootcacertpublisher.NewPublisher(e.informers.Core().V1().ConfigMaps(), e.informers.Core().V1().Namespaces(), client, e.RootCA)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}
