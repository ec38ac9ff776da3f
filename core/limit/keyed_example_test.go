package limit_test

import (
	"context"
	"fmt"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
)

func ExampleNewKeyed() {
	clients, err := limit.NewKeyed(limit.KeyedConfig[string]{
		Name:    "clients",
		Limit:   limit.TokenBucketConfig{Rate: limit.PerMinute(10), Burst: 2},
		MaxKeys: 50_000,
	})
	if err != nil {
		panic(err)
	}
	for _, client := range []string{"ann", "ann", "ann", "bob"} {
		fmt.Println(client, clients.Allow(client))
	}
	// Output:
	// ann true
	// ann true
	// ann false
	// bob true
}

func ExampleKeyed_AcquireKey() {
	tenants, _ := limit.NewKeyed(limit.KeyedConfig[int]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerHour(10), Burst: 10},
	})
	ctx := context.Background()
	permit, err := tenants.AcquireKey(ctx, 42, core.Call{Cost: 10})
	fmt.Println(err)
	permit.Finish(ctx, core.Result{Cost: 3}) // it cost less than was thought
	fmt.Println(tenants.AllowN(42, 7), tenants.Allow(42))
	// Output:
	// <nil>
	// true false
}
